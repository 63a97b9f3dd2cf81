"""Fusion: a layer and the pointwise ops behind it become one node, and one node becomes several again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tilefuse.errors import ModelError
from tilefuse.graph import Graph, Node, Shape
from tilefuse.ops import (
    NO_PADDING,
    Activation,
    Binary,
    Clamp,
    Conv2d,
    ConvTranspose2d,
    Fused,
    Linear,
    Op,
    Pad,
    PixelShuffle,
    PRelu,
)

MOST_RESIDUALS = 2

# Sizes to infer shapes at: multiples of every power of two, three and five a network is likely to halve or third by.
PROBES = ((480, 960), (64, 128), (1440, 2880), (16, 32))


def fuse_epilogues(graph: Graph) -> Graph:
    """Join each convolution or linear layer with its epilogue into one `Fused` node.

    An epilogue is a chain of activations, PReLU, clamps, sums and products with constants (one number or one a
    channel), pixel shuffles, and sums with a residual of the same shape, two at most. Each value between two members
    has one reader and is no output. The running value is always a member's first operand. The node stands where its
    last member stood, so a residual may be computed after the layer; of two layers that meet in a sum, the later one
    takes it.
    """
    shapes, consumers = _shapes(graph), graph.consumers()
    replaced, gone = dict[str, Node](), set[str]()
    for head in reversed(graph.nodes):
        if not isinstance(head.op, Conv2d | ConvTranspose2d | Linear):
            continue
        if any(name not in graph.weights for name in head.inputs[1:]):
            continue
        members: list[Op] = [head.op]
        inputs, arities, residuals = [*head.inputs], [len(head.inputs)], 0
        value = head.output
        while value not in graph.outputs and len(readers := consumers.get(value, [])) == 1:
            member = _member(readers[0], value, graph, shapes)
            if member is None or readers[0].output in gone or readers[0].output in replaced:
                break
            op, extras = member
            residual = isinstance(op, Binary) and extras[0] not in graph.weights
            if residuals + residual > MOST_RESIDUALS:
                break
            members.append(op)
            arities.append(len(extras))
            inputs += extras
            residuals += residual
            gone.add(value)
            value = readers[0].output
        if len(members) > 1:
            replaced[value] = Node(Fused(tuple(members), tuple(arities)), tuple(inputs), value)
    nodes = (replaced.get(node.output, node) for node in graph.nodes if node.output not in gone)
    return replace(graph, nodes=tuple(nodes))


def merge_pads(graph: Graph) -> Graph:
    """Make each pad that only one convolution reads part of that convolution.

    Zeros add to the convolution's own padding; the other modes need a convolution without padding of its own.
    """
    consumers, nodes = graph.consumers(), {node.output: node for node in graph.nodes}
    for node in graph.nodes:
        readers = consumers.get(node.output, [])
        if not isinstance(node.op, Pad) or len(readers) != 1 or node.output in graph.outputs:
            continue
        conv = nodes[readers[0].output]
        if not isinstance(conv.op, Conv2d) or conv.inputs.count(node.output) != 1 or conv.inputs[0] != node.output:
            continue
        zeros = node.op.mode == conv.op.padding_mode == "constant" and node.op.value == 0
        if min(node.op.padding) < 0 or not (zeros or (node.op.mode != "constant" and conv.op.padding == NO_PADDING)):
            continue
        top, left, bottom, right = (a + b for a, b in zip(node.op.padding, conv.op.padding, strict=True))
        op = replace(conv.op, padding=(top, left, bottom, right), padding_mode=node.op.mode)
        nodes[conv.output] = Node(op, (nodes.pop(node.output).inputs[0], *conv.inputs[1:]), conv.output)
    return replace(graph, nodes=tuple(nodes.values()))


def unfuse(graph: Graph) -> Graph:
    """Expand every `Fused` node into its members: the inverse of `fuse_epilogues`."""
    taken = {*(spec.name for spec in graph.inputs), *graph.weights, *(node.output for node in graph.nodes)}
    nodes: list[Node] = []
    for node in graph.nodes:
        if not isinstance(node.op, Fused):
            nodes.append(node)
            continue
        rest, running = node.inputs, tuple[str, ...]()
        last = len(node.op.members) - 1
        for position, (op, arity) in enumerate(zip(node.op.members, node.op.arities, strict=True)):
            output = node.output if position == last else f"{node.output}.{position}"
            while position != last and output in taken:
                output += "_"
            taken.add(output)
            nodes.append(Node(op, (*running, *rest[:arity]), output))
            running, rest = (output,), rest[arity:]
    return replace(graph, nodes=tuple(nodes))


def _member(node: Node, value: str, graph: Graph, shapes: Mapping[str, Shape]) -> tuple[Op, tuple[str, ...]] | None:
    """Read a node as a member of an epilogue that runs on `value`: its op and the other tensors it reads."""
    if node.inputs.count(value) != 1:
        return None
    others = tuple(name for name in node.inputs if name != value)
    first = node.inputs[0] == value
    match node.op:
        case Activation() | Clamp() | PixelShuffle():
            return node.op, others
        case PRelu() if first and _per_channel(others[0], value, graph, shapes):
            return node.op, others
        case Binary(kind="add" | "mul" | "sub" | "div" as kind) if first or kind in ("add", "mul"):
            if _per_channel(others[0], value, graph, shapes):
                return node.op, others
            same = value in shapes and shapes[value] == shapes[others[0]]
            if kind in ("add", "sub") and same and others[0] not in graph.weights:
                return node.op, others
    return None


def _per_channel(name: str, value: str, graph: Graph, shapes: Mapping[str, Shape]) -> bool:
    """Tell whether a name is a constant of one number, or of one a channel of `value`."""
    if name not in graph.weights:
        return False
    shape = tuple(graph.weights[name].shape)
    if not shape:
        return True
    if value not in shapes:
        return False
    trailing = (1,) * (len(shapes[value]) - 2)
    return shape in ((1, *trailing), (shapes[value][1], *trailing))


def _shapes(graph: Graph) -> Mapping[str, Shape]:
    """Infer the shape of every value at some size that the graph takes; empty where no size tried is."""
    for sizes in PROBES:
        known = [
            tuple(
                size if size is not None else 2 if axis == 0 else sizes[axis % 2]
                for axis, size in enumerate(spec.shape)
            )
            for spec in graph.inputs
        ]
        try:
            return graph.shapes(*known)
        except ModelError:
            continue
    return {}
