"""Shape inference over sizes that may depend on the image; the counterpart of `Graph.shapes` while a graph is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from tilefuse.importers.onnx_sizes import Dim, Number, Size, ceil, divide, floor, unknown
from tilefuse.ops import (
    AdaptivePool2d,
    BatchNorm,
    Binary,
    Concat,
    Conv2d,
    ConvTranspose2d,
    GroupNorm,
    Linear,
    Mean,
    Op,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Pool2d,
    PRelu,
    Reshape,
    Resize,
    Slice,
)

Dims = tuple[Dim, ...]


def infer(op: Op, shapes: Sequence[Dims]) -> Dims:
    """Give the shape of an op's output; a size that has no exact form becomes an unknown of its own.

    Raises:
        ValueError: the shapes do not fit together.
    """
    x = shapes[0]
    match op:
        case Conv2d():
            return _with_bias(_conv(op, x, shapes[1]), 1, shapes[2:])
        case ConvTranspose2d():
            return _with_bias(_conv_transpose(op, x, shapes[1]), 1, shapes[2:])
        case Linear():
            made = _linear(op, x, shapes[1])
            if len(shapes) > 2 and broadcast(made, shapes[2]) != made:
                raise ValueError(f"a bias of shape {_text(shapes[2])} does not broadcast to {_text(made)}")
            return made
        case Concat():
            return _concat(op, shapes)
        case Slice():
            return _replace(x, op.dim, _sliced(op, x[op.dim]))
        case PixelShuffle():
            n, c, h, w = x
            if isinstance(c, int) and c % op.factor**2:
                raise ValueError(f"{c} channels do not divide by {op.factor}²")
            return n, _dim(floor(divide(c, op.factor**2))), _dim(h * op.factor), _dim(w * op.factor)
        case PixelUnshuffle():
            n, c, h, w = x
            h, w = _dim(floor(divide(h, op.factor))), _dim(floor(divide(w, op.factor)))
            return n, _dim(c * op.factor**2), h, w
        case Pad():
            top, left, bottom, right = op.padding
            return (*x[:-2], _dim(x[-2] + top + bottom), _dim(x[-1] + left + right))
        case Reshape():
            return _reshaped(op, x)
        case BatchNorm() | GroupNorm():
            return _normalised(op, shapes)
        case Binary():
            return broadcast(*shapes)
        case PRelu():
            if len(shapes[1]) > len(x) or broadcast(*shapes) != x:
                raise ValueError(f"a slope of shape {_text(shapes[1])} does not broadcast to {_text(x)}")
            return x
        case Pool2d():
            pads = op.padding
            height, width = _pooled(op, x[2], pads[0], pads[2], 0), _pooled(op, x[3], pads[1], pads[3], 1)
            return _with_bias((*x[:2], height, width), 1, ())
        case AdaptivePool2d():
            return (*x[:2], *op.size)
        case Mean():
            dims = {dim % len(x) for dim in op.dims} or set(range(len(x)))
            kept: list[Dim | None] = [(1 if op.keepdim else None) if i in dims else size for i, size in enumerate(x)]
            return tuple(size for size in kept if size is not None)
        case Resize():
            if op.size is not None:
                return (*x[:2], *op.size)
            scale = op.scale or (Fraction(1), Fraction(1))
            sizes = (_dim(floor(size * k)) for size, k in zip(x[2:], scale, strict=True))
            return (*x[:2], *sizes)
        case _:
            return x


def broadcast(*shapes: Dims) -> Dims:
    """Give the shape tensors broadcast to; a known size wins over an unknown one, which can only equal it or be 1."""
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        distinct = {size for size in sizes if size != 1}
        known = {size for size in distinct if isinstance(size, int)}
        if len(known) > 1:
            raise ValueError(f"sizes {sorted(known)} do not broadcast")
        result.append((known or distinct or {1}).pop() if len(distinct) < 2 or known else unknown())
    return tuple(result)


def element_count(shape: Dims) -> Number:
    """Count the elements of a tensor."""
    total: Number = 1
    for size in shape:
        total = total * size
    return total


def _dim(size: Number) -> Dim:
    return size if isinstance(size, int | Size) else unknown()


def _replace(shape: Dims, dim: int, size: Dim) -> Dims:
    sizes = list(shape)
    sizes[dim] = size
    return tuple(sizes)


def _text(shape: Dims) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _with_bias(made: Dims, channels: int, bias: Sequence[Dims]) -> Dims:
    """Check a layer's result: one bias a channel, and an image left over."""
    if bias and bias[0] != (made[channels],):
        raise ValueError(f"a bias of shape {_text(bias[0])} for {made[channels]} channels")
    if any(isinstance(size, int) and size < 1 for size in made):
        raise ValueError("its input is smaller than its kernel")
    return made


def _normalised(op: BatchNorm | GroupNorm, shapes: Sequence[Dims]) -> Dims:
    x, *each = shapes
    channels = x[1]
    if any(shape != (channels,) for shape in each):
        raise ValueError(f"weights of shapes {', '.join(map(_text, each))} for {channels} channels")
    if isinstance(op, GroupNorm) and op.groups and (not isinstance(channels, int) or channels % op.groups):
        raise ValueError(f"{channels} channels do not divide into {op.groups} groups")
    return x


def _conv(op: Conv2d, x: Dims, weight: Dims) -> Dims:
    if op.groups < 1 or (isinstance(weight[0], int) and weight[0] % op.groups):
        raise ValueError(f"{weight[0]} channels do not divide into {op.groups} groups")
    if x[1] != weight[1] * op.groups:
        raise ValueError(f"the weight takes {weight[1]} x {op.groups} channels, its input has {x[1]}")
    top, left, bottom, right = op.padding
    sizes = []
    for axis, total in ((0, top + bottom), (1, left + right)):
        span = (weight[2 + axis] - 1) * op.dilation[axis]
        sizes.append(_dim(floor(divide(x[2 + axis] + total - span - 1, op.stride[axis])) + 1))
    return (x[0], weight[0], *sizes)


def _conv_transpose(op: ConvTranspose2d, x: Dims, weight: Dims) -> Dims:
    if op.groups < 1 or (isinstance(weight[0], int) and weight[0] % op.groups):
        raise ValueError(f"{weight[0]} channels do not divide into {op.groups} groups")
    if x[1] != weight[0]:
        raise ValueError(f"the weight takes {weight[0]} channels, its input has {x[1]}")
    top, left, bottom, right = op.padding
    sizes = []
    for axis, total in ((0, top + bottom), (1, left + right)):
        span = (weight[2 + axis] - 1) * op.dilation[axis] + 1
        sizes.append(_dim((x[2 + axis] - 1) * op.stride[axis] + span - total + op.output_padding[axis]))
    return (x[0], _dim(weight[1] * op.groups), *sizes)


def _linear(op: Linear, x: Dims, weight: Dims) -> Dims:
    rows, inner = (x[-1], x[-2]) if op.transpose_input else (x[-2], x[-1])
    taken, made = (weight[-1], weight[-2]) if op.transpose_weight else (weight[-2], weight[-1])
    if inner != taken:
        raise ValueError(f"the weight takes {taken} features, its input has {inner}")
    return (*x[:-2], rows, made)


def _concat(op: Concat, shapes: Sequence[Dims]) -> Dims:
    total: Number = 0
    for shape in shapes:
        total = total + shape[op.dim]
        for i, (a, b) in enumerate(zip(shape, shapes[0], strict=True)):
            if i != op.dim % len(shape) and isinstance(a, int) and isinstance(b, int) and a != b:
                raise ValueError(f"sizes {a} and {b} at axis {i} differ")
    return _replace(shapes[0], op.dim, _dim(total))


def _sliced(op: Slice, size: Dim) -> Dim:
    if isinstance(size, int):
        return len(range(*slice(op.start, op.stop, op.step).indices(size)))
    if op.start >= 0 and (op.stop is None or op.stop < 0):
        return _dim(ceil(divide(size - op.start + (op.stop or 0), op.step)))
    return unknown()


def _reshaped(op: Reshape, x: Dims) -> Dims:
    sizes: list[Dim] = [x[i] if size == 0 else size for i, size in enumerate(op.shape)]
    if -1 in op.shape:
        at = op.shape.index(-1)
        rest = element_count(tuple(size for i, size in enumerate(sizes) if i != at))
        sizes[at] = _dim(divide(element_count(x), rest))
    if (total := element_count(tuple(sizes))) != element_count(x) and isinstance(total, int):
        raise ValueError(f"{math.prod(s for s in x if isinstance(s, int))} elements do not fill {list(op.shape)}")
    return tuple(sizes)


def _pooled(op: Pool2d, size: Dim, before: int, after: int, axis: int) -> Dim:
    stride = op.stride[axis]
    span = op.dilation[axis] * (op.kernel[axis] - 1) + 1
    steps = divide(size + (before + after - span), stride)
    if not op.ceil_mode:
        return _dim(floor(steps) + 1)
    out = ceil(steps) + 1
    if isinstance(size, int) and isinstance(out, int):
        # A window may not start in the padding after the data.
        return out - 1 if (out - 1) * stride >= size + before else out
    return _dim(out) if after + stride <= span else unknown()
