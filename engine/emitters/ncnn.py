"""Graph to ncnn: the param text and the weight bytes that `ncnn.Net` loads.

ncnn has no batch axis, so one image is emitted: [1, C, H, W] becomes a 3-D Mat (w, h, c), [1, F] a 1-D Mat. Shapes are
fixed, which lets sizes, slices and border rules be settled here. Layer numbers and parameters: ncnn's `operators.md`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tilefuse.emitters.ncnn_layers import WRITERS
from tilefuse.emitters.ncnn_sheet import Layer, Sheet, UnsupportedError
from tilefuse.errors import BackendError
from tilefuse.graph import Graph, Node, Shape
from tilefuse.ops import Activation, Conv2d, ConvTranspose2d, Linear
from tilefuse.passes import unfuse

_MAGIC = 7767517


@dataclass(frozen=True)
class NcnnModel:
    """What ncnn loads, and the blobs to feed and to extract, with their shapes for a batch of one."""

    param: str
    weights: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[Shape, ...]


def to_ncnn(graph: Graph, *shapes: Shape) -> NcnnModel:
    """Write the graph for one image of the given input shapes ([1, ..] each).

    Raises:
        BackendError: an op, an attribute or a size that ncnn can't express exactly; the message names it.
        ModelError: the graph can't take inputs of these shapes.
    """
    graph = unfuse(graph)
    known = graph.shapes(*shapes)
    for name, shape in known.items():
        if name not in graph.weights and (shape[0] != 1 or not 2 <= len(shape) <= 5):
            raise BackendError(f"ncnn takes one image at a time; the value {name!r} is {'x'.join(map(str, shape))}")
    sheet = Sheet(shapes=known, weights=graph.weights)
    for node, activation in _with_activation(graph):
        writer = WRITERS.get(type(node.op))
        if writer is None:
            raise BackendError(f"ncnn has no layer for {node.op.name}")
        output = node.output if activation is None else activation.output
        try:
            writer(sheet, node, output, activation.op if activation else None)
        except UnsupportedError as reason:
            raise BackendError(f"ncnn can't express {node.op.name} ({node.output}): {reason}") from reason
    for name in graph.outputs:
        if name in graph.weights:
            raise BackendError(f"ncnn can't return the constant {name!r}")
    layers = [Layer("Input", (), spec.name) for spec in graph.inputs] + sheet.layers
    param, made, returned = _assemble(layers, graph.outputs)
    return NcnnModel(
        param=param,
        weights=b"".join(layer.data for layer in layers),
        inputs=tuple(made[spec.name] for spec in graph.inputs),
        outputs=tuple(returned[name] for name in graph.outputs),
        output_shapes=tuple(known[name] for name in graph.outputs),
    )


def _with_activation(graph: Graph) -> list[tuple[Node, Node | None]]:
    """Pair each multiplication with the (leaky) ReLU that alone reads it: ncnn applies it while the result is hot."""
    consumers = graph.consumers()
    pairs: list[tuple[Node, Node | None]] = []
    absorbed: set[str] = set()
    for node in graph.nodes:
        if node.output in absorbed:
            continue
        readers = consumers.get(node.output, [])
        activation = readers[0] if len(readers) == 1 and node.output not in graph.outputs else None
        if (
            isinstance(node.op, Conv2d | ConvTranspose2d | Linear)
            and activation is not None
            and isinstance(activation.op, Activation)
            and activation.op.kind in ("relu", "leaky_relu")
        ):
            absorbed.add(activation.output)
            pairs.append((node, activation))
        else:
            pairs.append((node, None))
    return pairs


def _assemble(layers: list[Layer], outputs: tuple[str, ...]) -> tuple[str, dict[str, str], dict[str, str]]:
    """Write the param text: each value's blob, split where it is read more than once (a blob has one consumer).

    Returns the text, the blob every value is made in, and the blob every output is returned in.
    """
    uses = Counter(name for layer in layers for name in layer.inputs)
    uses.update(set(outputs))
    made: dict[str, str] = {}
    unread: dict[str, list[str]] = {}
    lines: list[str] = []
    count = 0

    def blobs(number: int) -> list[str]:
        nonlocal count
        count += number
        return [f"b{i}" for i in range(count - number, count)]

    def line(kind: str, inputs: list[str], tops: list[str], params: str) -> None:
        lines.append(" ".join([kind, f"l{len(lines)}", f"{len(inputs)} {len(tops)}", *inputs, *tops, params]).rstrip())

    for layer in layers:
        sources = [unread[name].pop() for name in layer.inputs]
        (made[layer.output],) = top = blobs(1)
        line(layer.kind, sources, top, layer.text())
        readers = uses[layer.output]
        unread[layer.output] = blobs(readers) if readers > 1 else top.copy()
        if readers > 1:
            line("Split", top, unread[layer.output], "")
    text = f"{_MAGIC}\n{len(lines)} {count}\n" + "\n".join(lines) + "\n"
    return text, made, {name: unread[name].pop() for name in dict.fromkeys(outputs)}
