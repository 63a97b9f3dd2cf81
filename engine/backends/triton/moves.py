"""Ops that move, pool or resample: one launch each, or none where a view will do."""

from __future__ import annotations

import torch

from tilefuse.backends.triton.builder import Builder, nhwc
from tilefuse.backends.triton.operations import Border, Interpolation, Pointwise, Pooling, Shuffle, Statistics
from tilefuse.backends.triton.places import Call, Operation, Place, dense_strides
from tilefuse.backends.triton.tables import resize_tables
from tilefuse.graph import Node
from tilefuse.kernels.norm import scratch_shape
from tilefuse.ops import (
    NO_PADDING,
    AdaptivePool2d,
    Concat,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Pool2d,
    Reshape,
    Resize,
    Slice,
)

# A value's axes in memory by those of the graph.
_AXES = {4: (0, 3, 1, 2), 2: (0, 3)}


def emit_move(builder: Builder, node: Node) -> bool:
    """Emit a shuffle, a pad, a pool or a resize of an image; False where no kernel serves its attributes."""
    name = node.inputs[0]
    height, width = builder.shapes[name][2:]
    size = builder.shapes[node.output][2], builder.shapes[node.output][3]
    operation: Operation
    match node.op:
        case PixelShuffle(factor=factor, order=order):
            operation = Shuffle(factor, order, False)
        case PixelUnshuffle(factor=factor, order=order):
            operation = Shuffle(factor, order, True)
        case Pad(padding=padding, mode=mode, value=value):
            operation = Border(padding, mode, value)
        case Pool2d() as op:
            operation = Pooling(op.kind, op.kernel, op.stride, op.padding, op.dilation, size, op.count_include_pad)
        case AdaptivePool2d(kind="avg", size=(1, 1)):
            return emit_mean(builder, node, (2, 3))
        case AdaptivePool2d(kind=kind):
            if height % size[0] or width % size[1]:
                return False
            kernel = height // size[0], width // size[1]
            operation = Pooling(kind, kernel, kernel, NO_PADDING, (1, 1), size, False)
        case Resize() as op:
            operation = Interpolation(resize_tables(op, height, width))
        case _:
            return False
    builder.call(_kernel(node), node.output, (builder.place(name),), operation)
    return True


def emit_concat(builder: Builder, node: Node) -> bool:
    """Emit copies of those inputs that do not lie in their place already."""
    rank = len(builder.shapes[node.output])
    if rank not in _AXES:
        return False
    axis, start = _AXES[rank][node.op.dim % rank if isinstance(node.op, Concat) else 1], 0
    whole = builder.destination(node.output)
    builder.places[node.output] = whole
    for name in node.inputs:
        source = builder.place(name)
        target = whole.narrowed(axis, start, source.shape[axis])
        if source != target:
            copy(builder, source, target, node.output)
        start += source.shape[axis]
    return True


def emit_slice(builder: Builder, node: Node) -> bool:
    """View a part of a value; every second channel is copied, as kernels want neighbouring ones."""
    rank, source = len(builder.shapes[node.output]), builder.place(node.inputs[0])
    if not isinstance(node.op, Slice) or rank not in _AXES:
        return False
    axis = _AXES[rank][node.op.dim % rank]
    start, stop, step = slice(node.op.start, node.op.stop, node.op.step).indices(source.shape[axis])
    part = source.narrowed(axis, start, len(range(start, stop, step)), step)
    if axis == 3 and step != 1:
        copy(builder, part, builder.destination(node.output), node.output)
    else:
        builder.places[node.output] = part
    return True


def emit_reshape(builder: Builder, node: Node) -> bool:
    """Give a value other axes: a view where its elements lie in the graph's order, else through one copy or two."""
    name, shape = node.inputs[0], builder.shapes[node.output]
    before, source = builder.shapes[name], builder.place(node.inputs[0])
    if not isinstance(node.op, Reshape) or any(len(each) in (0, 1) for each in (shape, before)):
        return False
    if name in builder.interleaved:
        # A linear layer wrote the pixels in the image's order.
        builder.places[node.output] = source.viewed(nhwc(shape), dense_strides(nhwc(shape)))
        return True
    if not _in_order(source, len(before)):
        if len(before) not in _AXES:
            return False
        rows = builder.buffer(f"{node.output}.rows", before)
        copy(builder, source, _as_image(rows, before), rows.buffer)
        source = rows
    dense = source.viewed(shape, dense_strides(shape))
    if len(shape) == 4 and not (shape[1] == 1 or shape[2] == shape[3] == 1):
        copy(builder, _as_image(dense, shape), builder.destination(node.output), node.output)
    else:
        axes = nhwc(shape)
        builder.places[node.output] = dense.viewed(axes, dense_strides(axes))
    return True


def emit_mean(builder: Builder, node: Node, dims: tuple[int, ...]) -> bool:
    """Emit an average over height and width, by the statistics of a norm."""
    name = node.inputs[0]
    if len(builder.shapes[name]) != 4 or sorted(dim % 4 for dim in dims) != [2, 3]:
        return False
    source = builder.place(name)
    n, h, w, c = source.shape
    scratch = builder.buffer(f"{node.output}.chunks", scratch_shape(n, h, w, c), torch.float32)
    found = builder.buffer(f"{node.output}.statistics", (3, n, 1, 1, c), torch.float32)
    operation = Statistics(0, None, None, 0.0)
    builder.calls.append(Call("norm_statistics", node.output, (source,), (scratch, found), operation))
    mean = found.narrowed(0, 0, 1).viewed((n, 1, 1, c), (c, c, c, 1))
    copy(builder, mean, builder.destination(node.output), node.output)
    return True


def copy(builder: Builder, source: Place, target: Place, value: str) -> None:
    """Copy between two places of the same axes."""
    builder.call("elementwise", value, (source,), Pointwise((0,), ()), target)


def _kernel(node: Node) -> str:
    return {"pool2d": "pool", "adaptive_pool2d": "pool"}.get(node.op.name, node.op.name)


def _in_order(place: Place, rank: int) -> bool:
    """Tell whether a value's elements lie one after the other in the graph's order."""
    if rank != 4:
        return place.is_dense
    _, h, w, c = place.shape
    return place.is_dense and (c == 1 or h == w == 1)


def _as_image(rows: Place, shape: tuple[int, ...]) -> Place:
    """View dense elements in the graph's order as [N, H, W, C]."""
    n, c, h, w = shape if len(shape) == 4 else (*shape, 1, 1)
    return rows.viewed((n, h, w, c), (c * h * w, w, 1, h * w))
