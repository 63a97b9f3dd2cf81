"""Placement of concats: which values are written straight into the buffer of the concat that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tilefuse.graph import Graph, Shape
from tilefuse.ops import Concat


@dataclass(frozen=True)
class Placement:
    """A value's place: channels `channel_offset`, ... of the buffer named after the largest concat it is part of."""

    buffer: str
    channel_offset: int


def concat_placements(graph: Graph, shapes: Mapping[str, Shape]) -> Mapping[str, Placement]:
    """Lay out the inputs of channel concats side by side in shared buffers, so that joining them moves nothing.

    A buffer is as large as the concat it is named after. A concat whose inputs lie side by side in a buffer of another
    one (the growing concats of a dense block) is a view of that buffer. An input of a concat whose placement is not the
    concat's own plus the input's offset has to be copied there; graph inputs, graph outputs and weights always are, and
    so is a value that another concat holds already. A value keeps its place as long as any value of its buffer lives.

    Args:
        graph: unfused or fused.
        shapes: the shape of every value, from `graph.shapes`.
    """
    fixed = {*(spec.name for spec in graph.inputs), *graph.weights, *graph.outputs}
    placed: dict[str, Placement] = {}
    # From the last to the first: the last concat of a dense block holds all the others.
    for node in reversed(graph.nodes):
        if not isinstance(node.op, Concat) or node.op.dim not in (1, 1 - len(shapes[node.output])):
            continue
        offsets = _offsets(node.inputs, shapes)
        start = placed.get(node.output)
        if start is None and node.output not in graph.outputs:
            start = _view(node.inputs, offsets, placed)
        if start is None:
            free = [name for name in node.inputs if name not in fixed and name not in placed]
            if not free:
                continue
            start = Placement(node.output, 0)
        placed[node.output] = start
        for name, offset in zip(node.inputs, offsets, strict=True):
            if name not in fixed:
                placed.setdefault(name, Placement(start.buffer, start.channel_offset + offset))
    return placed


def _offsets(names: tuple[str, ...], shapes: Mapping[str, Shape]) -> list[int]:
    """First channel of each input in their concat."""
    widths = [shapes[name][1] for name in names]
    return [sum(widths[:position]) for position in range(len(widths))]


def _view(names: tuple[str, ...], offsets: list[int], placed: Mapping[str, Placement]) -> Placement | None:
    """Give the place at which the inputs of a concat lie side by side already, if there is one."""
    first = placed.get(names[0])
    if first is None:
        return None
    wanted = [Placement(first.buffer, first.channel_offset + offset) for offset in offsets]
    return first if [placed.get(name) for name in names] == wanted else None
