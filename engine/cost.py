"""What running a graph costs at given shapes: arithmetic and peak live memory, from the graph alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from weakref import WeakKeyDictionary

from tilefuse.graph import Graph, Node, Shape
from tilefuse.ops import Conv2d, ConvTranspose2d, Fused, Linear, Reshape, Slice

FLOAT_BYTES = 4
# An image of another size is planned for a dozen windows that were never seen.
_REMEMBERED = 1024


@dataclass(frozen=True)
class Cost:
    """What one run takes: floating-point operations, and bytes of activations alive at once and of all weights."""

    flops: int
    live_bytes: int
    weight_bytes: int


_COSTS: WeakKeyDictionary[Graph, dict[tuple[Shape, ...], Cost]] = WeakKeyDictionary()


def cost_of(graph: Graph, inputs: tuple[Shape, ...]) -> Cost:
    """Cost a run at the given input shapes. Graphs don't change, so what was counted is kept as long as they live.

    Raises:
        ModelError: an op can't take the size that reaches it.
    """
    known = _COSTS.setdefault(graph, {})
    found = known.get(inputs)
    if found is None:
        shapes = graph.shapes(*inputs)
        found = Cost(flops(graph, shapes), peak_live_bytes(graph, shapes), weight_bytes(graph))
        if len(known) >= _REMEMBERED:
            known.clear()
        known[inputs] = found
    return found


def flops(graph: Graph, shapes: Mapping[str, Shape]) -> int:
    """Count floating-point operations: two a multiply-add, one a pointwise element."""
    return sum(node_flops(node, shapes) for node in graph.nodes)


def node_flops(node: Node, shapes: Mapping[str, Shape]) -> int:
    """Count the operations of one node."""
    elements = prod(shapes[node.output])
    op = node.op.members[0] if isinstance(node.op, Fused) else node.op
    extra = elements * (len(node.op.members) - 1) if isinstance(node.op, Fused) else 0
    match op:
        case Conv2d():
            # A fused pixel shuffle keeps the number of elements, so the node's output stands for the convolution's.
            return 2 * elements * prod(shapes[node.inputs[1]][1:]) + extra
        case ConvTranspose2d():
            return 2 * prod(shapes[node.inputs[0]]) * prod(shapes[node.inputs[1]][1:]) + extra
        case Linear():
            return 2 * elements * shapes[node.inputs[0]][-1] + extra
        case Reshape() | Slice():
            return 0
    return elements


def peak_live_bytes(graph: Graph, shapes: Mapping[str, Shape], itemsize: int = FLOAT_BYTES) -> int:
    """Largest sum of activations alive at once when every value is freed after its last reader."""
    last_use = graph.last_use()
    live = {spec.name: itemsize * prod(shapes[spec.name]) for spec in graph.inputs}
    peak = sum(live.values())
    for position, node in enumerate(graph.nodes):
        live[node.output] = itemsize * prod(shapes[node.output])
        peak = max(peak, sum(live.values()))
        for name in (*node.inputs, node.output):
            if last_use.get(name, -1) <= position and name not in graph.outputs:
                live.pop(name, None)
    return peak


def weight_bytes(graph: Graph) -> int:
    """Bytes of all weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in graph.weights.values())
