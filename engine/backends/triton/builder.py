"""The state of a lowering: what has been placed, what waits for its reader, and the calls so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from tilefuse.backends.triton.operations import Pointwise
from tilefuse.backends.triton.places import Buffer, Call, Operation, Place, dense_strides
from tilefuse.graph import Graph, Node, Shape
from tilefuse.kernels.toolchain import narrowed
from tilefuse.ops import (
    Activation,
    Binary,
    Clamp,
    Conv2d,
    ConvTranspose2d,
    Fused,
    GroupNorm,
    PRelu,
    Reshape,
    Resize,
    Unary,
)
from tilefuse.passes import Placement, concat_placements

POINTWISE = (Activation, PRelu, Clamp, Unary, Binary)


class Builder:
    """Collects calls. `pending` holds nodes whose only reader may do their work; placing such a value emits it."""

    def __init__(
        self, graph: Graph, shapes: Sequence[Shape], dtype: torch.dtype, emit: Callable[[Builder, Node], None]
    ) -> None:
        self.graph = graph
        self._emit = emit
        self.dtype = dtype
        self.shapes: Mapping[str, Shape] = graph.shapes(*shapes)
        # Vectors whose elements are pixels already: (h, w, c), where the graph has (c, h, w).
        self.interleaved: set[str] = set()
        self.readers = graph.consumers()
        self.pending: dict[str, Node] = {}
        self.calls: list[Call] = []
        self.buffers: dict[str, Buffer] = {}
        self.places: dict[str, Place] = {}
        self._placements: Mapping[str, Placement] = concat_placements(graph, self.shapes)
        for spec in graph.inputs:
            self.places[spec.name] = self.buffer(spec.name, nhwc(self.shapes[spec.name]))

    def place(self, name: str) -> Place:
        """Where a value lies; one that waited is made now, and a weight is copied to where it can be read."""
        if name in self.pending:
            self._emit(self, self.pending.pop(name))
        if name not in self.places:
            self._place_weight(name)
        return self.places[name]

    def buffer(self, name: str, shape: Shape, dtype: torch.dtype | None = None) -> Place:
        """Make a dense buffer."""
        unique = name
        while unique in self.buffers:
            unique += "'"
        self.buffers[unique] = Buffer(unique, prod(shape), dtype or self.dtype)
        return Place(unique, shape, dense_strides(shape), 0, dtype or self.dtype)

    def destination(self, name: str) -> Place:
        """Where a value is to be written: its channels of a concat's buffer, or a buffer of its own."""
        shape, placement = self.shapes[name], self._placements.get(name)
        if placement is None or len(shape) not in (2, 4):
            return self.buffer(name, nhwc(shape))
        whole = nhwc(self.shapes[placement.buffer])
        if placement.buffer not in self.buffers:
            self.buffers[placement.buffer] = Buffer(placement.buffer, prod(whole), self.dtype)
        base = Place(placement.buffer, whole, dense_strides(whole), 0, self.dtype)
        return base.narrowed(3, placement.channel_offset, shape[1])

    def call(
        self, kernel: str, value: str, reads: tuple[Place, ...], operation: Operation, to: Place | None = None
    ) -> Place:
        """Append a call that makes a value, at `to` or where the value belongs, and return its place."""
        made = to or self.destination(value)
        self.calls.append(Call(kernel, value, reads, (made,), operation))
        self.places.setdefault(value, made)
        return made

    def _place_weight(self, name: str) -> None:
        """Copy a weight to where a value lies."""
        tensor, shape = self.weight(name), self.shapes[name]
        target = self.buffer(name, nhwc(shape))
        image = len(shape) in (2, 4)
        source = broadcastable(tensor, len(shape)) if image else tensor.reshape(1, 1, 1, -1)
        seen = target if image else target.viewed((1, 1, 1, tensor.numel()), (0, 0, 0, 1))
        self.calls.append(Call("elementwise", name, (), (seen,), Pointwise((source,), ())))
        self.places[name] = target

    def weight(self, name: str) -> Tensor:
        """A weight in the type the program computes in; what that can't hold is NaN."""
        return narrowed(self.graph.weights[name], self.dtype)

    def is_single(self, name: str) -> bool:
        """Tell whether one node alone reads a value, once, and it is no output."""
        readers = self.readers.get(name, [])
        return len(readers) == 1 and readers[0].inputs.count(name) == 1 and name not in self.graph.outputs

    def image_of(self, name: str) -> tuple[int, int, int] | None:
        """Channels, height and width of the image that a vector's only reader makes of it, if it does."""
        reader = self.readers[name][0] if self.is_single(name) else None
        shape = self.shapes[reader.output] if reader is not None else ()
        if reader is None or not isinstance(reader.op, Reshape) or len(shape) != 4 or shape[0] != self.shapes[name][0]:
            return None
        return shape[1], shape[2], shape[3]

    def defers(self, node: Node) -> bool:
        """Tell whether a node's work may be done by its reader: by a chain, a prologue, or by reading enlarged."""
        if enlargement(node) > 1:
            return True
        if not isinstance(node.op, (*POINTWISE, GroupNorm)) or not self.is_single(node.output):
            return False
        reader = self.readers[node.output][0]
        head = reader.op.members[0] if isinstance(reader.op, Fused) else reader.op
        if isinstance(head, Conv2d | ConvTranspose2d):
            return reader.inputs[0] == node.output
        same = self.shapes[reader.output] == self.shapes[node.output]
        return isinstance(reader.op, POINTWISE) and same and len(self.shapes[node.output]) in (2, 4)


def nhwc(shape: Shape) -> Shape:
    """Axes of a value in memory: images NHWC, vectors as images of one pixel, anything else as it is."""
    if len(shape) == 4:
        return shape[0], shape[2], shape[3], shape[1]
    return (shape[0], 1, 1, shape[1]) if len(shape) == 2 else shape


def broadcastable(weight: Tensor, rank: int) -> Tensor:
    """View a weight as the kernels broadcast it against a value of `rank` axes: [N, H, W, C]."""
    full = weight.reshape((1,) * (rank - weight.ndim) + tuple(weight.shape))
    return full.permute(0, 2, 3, 1) if rank == 4 else full[:, None, None]


def enlargement(node: Node) -> int:
    """Factor of a nearest enlargement by a whole number that repeats pixels, else 1."""
    op = node.op
    if not isinstance(op, Resize) or op.mode != "nearest" or op.scale is None or op.scale[0] != op.scale[1]:
        return 1
    usual = (op.coordinates, op.rounding) == ("asymmetric", "floor")
    return op.scale[0].numerator if usual and op.scale[0].denominator == 1 else 1
