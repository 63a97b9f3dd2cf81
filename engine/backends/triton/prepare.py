"""The graph as the kernels want it: constants folded, layers fused as far as an epilogue reaches, patterns found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from tilefuse.backends.triton.epilogues import Tail, read_tail
from tilefuse.graph import Graph, Node
from tilefuse.ops import Binary, Conv2d, ConvTranspose2d, Fused, Linear, Mean, Op, Unary
from tilefuse.passes import fold_affine, fold_batch_norm, fold_constants, fuse_epilogues, merge_pads

Layered = Conv2d | ConvTranspose2d | Linear


@dataclass(frozen=True)
class PixelNorm:
    """x / sqrt(mean of x² over channels + eps), found in the graph: the value read, and the nodes it stands for."""

    source: str
    eps: float
    inner: tuple[str, ...]


def prepare(graph: Graph) -> Graph:
    """Run the passes; what no epilogue takes stands behind its layer as nodes of its own."""
    for step in (fold_constants, merge_pads, fold_batch_norm, fold_affine, fuse_epilogues):
        graph = step(graph)
    return _split(graph)


def members(node: Node) -> tuple[Op, tuple[str, ...], list[tuple[Op, tuple[str, ...]]]]:
    """Take a node apart: the layer, the names it reads, and each op behind it with the names that one reads."""
    if not isinstance(node.op, Fused):
        return node.op, node.inputs, []
    (head, *ops), (arity, *arities) = node.op.members, node.op.arities
    rest, behind = node.inputs[arity:], list[tuple[Op, tuple[str, ...]]]()
    for op, count in zip(ops, arities, strict=True):
        behind.append((op, rest[:count]))
        rest = rest[count:]
    return head, node.inputs[:arity], behind


def tail_of(node: Node, weights: Mapping[str, Tensor]) -> Tail:
    """Read what follows the layer of a node as an epilogue."""
    head, inputs, behind = members(node)
    return read_tail(behind, weights, layer_channels(head, weights[inputs[1]]))


def layer_channels(op: Op, weight: Tensor) -> int:
    """Channels a layer makes."""
    if isinstance(op, ConvTranspose2d):
        return weight.shape[1] * op.groups
    if isinstance(op, Linear) and not op.transpose_weight:
        return weight.shape[1]
    return weight.shape[0]


def pixel_norms(graph: Graph) -> dict[str, PixelNorm]:
    """Find x · rsqrt(mean(x², channels) + eps), by the name of its result."""
    made, readers = {node.output: node for node in graph.nodes}, graph.consumers()
    found: dict[str, PixelNorm] = {}

    def behind(name: str, op: Op) -> Node | None:
        """The node that makes a value, if it is this op and nothing else reads it."""
        node = made.get(name)
        single = len(readers.get(name, ())) == 1 and name not in graph.outputs
        return node if node is not None and single and node.op == op else None

    for node in graph.nodes:
        if node.op != Binary("mul"):
            continue
        for source, factor in (node.inputs, node.inputs[::-1]):
            root = behind(factor, Unary("rsqrt"))
            total = behind(root.inputs[0], Binary("add")) if root else None
            constants = [n for n in total.inputs if n in graph.weights] if total else []
            if root is None or total is None or len(constants) != 1 or graph.weights[constants[0]].numel() != 1:
                continue
            mean = behind(next(n for n in total.inputs if n != constants[0]), Mean((1,)))
            square = behind(mean.inputs[0], Unary("square")) if mean else None
            if mean is None or square is None or square.inputs[0] != source:
                continue
            inner = tuple(each.output for each in (square, mean, total, root))
            found[node.output] = PixelNorm(source, graph.weights[constants[0]].item(), inner)
    return found


def _split(graph: Graph) -> Graph:
    """Part each fused node behind the last member that its kernel's epilogue takes."""
    nodes: list[Node] = []
    taken = {*graph.weights, *(spec.name for spec in graph.inputs), *(node.output for node in graph.nodes)}
    for node in graph.nodes:
        head, inputs, behind = members(node)
        if not behind:
            nodes.append(node)
            continue
        count = tail_of(node, graph.weights).taken
        kept, rest = behind[:count], behind[count:]
        names = [_unique(f"{node.output}.{position}", taken) for position in range(len(rest))]
        outputs = [*names, node.output]
        ops = (head, *(op for op, _ in kept))
        arities = (len(inputs), *(len(extras) for _, extras in kept))
        read = (*inputs, *(name for _, extras in kept for name in extras))
        nodes.append(Node(Fused(ops, arities) if kept else head, read, outputs[0]))
        for position, (op, extras) in enumerate(rest):
            nodes.append(Node(op, (outputs[position], *extras), outputs[position + 1]))
    return replace(graph, nodes=tuple(nodes))


def _unique(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
