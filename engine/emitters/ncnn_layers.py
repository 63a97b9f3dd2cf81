"""One writer per op of the vocabulary: how it is said in ncnn's layers, or why it can't be."""

from __future__ import annotations

from typing import cast

from tilefuse.emitters.ncnn_convolution import conv, conv_transpose, linear, padded
from tilefuse.emitters.ncnn_resize import resize
from tilefuse.emitters.ncnn_sheet import Params, Sheet, Writer, extent, raw, require
from tilefuse.graph import Node
from tilefuse.ops import (
    Activation,
    AdaptivePool2d,
    BatchNorm,
    Binary,
    Clamp,
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
    Unary,
)

FLOAT_MAX = 3.40282347e38
_UNARY = {"abs": 0, "neg": 1, "square": 4, "sqrt": 5, "rsqrt": 6, "exp": 7, "log": 8, "reciprocal": 15}
# Sums run in float32: past this the error of a normalised value passes 1e-4.
_LARGEST_GROUP = 1 << 20
# The second number is the operation with its operands swapped, for a scalar on the left.
_BINARY = {"add": (0, 0), "sub": (1, 7), "mul": (2, 2), "div": (3, 8), "max": (4, 4), "min": (5, 5)}


def _activation(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(Activation, node.op)
    if op.kind == "softplus":
        _softplus(sheet, node.inputs[0], output)
        return
    sixth, slope = 1 / 6, float(op.slope)
    kinds: dict[str, tuple[str, Params]] = {
        "relu": ("ReLU", {}),
        "leaky_relu": ("ReLU", {0: slope}),
        "elu": ("ELU", {0: slope}),
        "gelu": ("GELU", {0: 0}),
        "gelu_tanh": ("GELU", {0: 1}),
        "silu": ("Swish", {}),
        "hardswish": ("HardSwish", {0: sixth, 1: 0.5}),
        "hardsigmoid": ("HardSigmoid", {0: sixth, 1: 0.5}),
        "tanh": ("TanH", {}),
        "sigmoid": ("Sigmoid", {}),
        "mish": ("Mish", {}),
    }
    kind, params = kinds[op.kind]
    sheet.add(kind, node.inputs, output, params)


def _softplus(sheet: Sheet, x: str, output: str) -> None:
    """Write relu(x) + log(1 + exp(-|x|)): ncnn's own layer overflows past 88."""
    positive, value = sheet.fresh(), x
    sheet.add("ReLU", (x,), positive, {})
    plus_one: Params = {0: 0, 1: 1, 2: 1.0}
    for step in ("abs", "neg", "exp", "plus one", "log"):
        source, value = value, sheet.fresh()
        if step == "plus one":
            sheet.add("BinaryOp", (source,), value, plus_one)
        else:
            sheet.add("UnaryOp", (source,), value, {0: _UNARY[step]})
    sheet.add("BinaryOp", (positive, value), output, {0: 0})


def _prelu(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    x, slope_name = node.inputs
    slope, shape = sheet.constant(slope_name, "slope"), sheet.shapes[x]
    per_channel = (1,) * (slope.ndim - len(shape) + 1) + (shape[1], *(1 for _ in shape[2:]))
    require(slope.numel() == 1 or tuple(slope.shape) == per_channel, "a slope that is not one a channel")
    sheet.add("PReLU", (x,), output, {0: slope.numel()}, raw(slope))


def _clamp(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(Clamp, node.op)
    low, high = -FLOAT_MAX if op.low is None else op.low, FLOAT_MAX if op.high is None else op.high
    sheet.add("Clip", node.inputs, output, {0: float(low), 1: float(high)})


def _unary(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    kind = cast(Unary, node.op).kind
    if kind == "erf":
        sheet.add("Erf", node.inputs, output, {})
    else:
        sheet.add("UnaryOp", node.inputs, output, {0: _UNARY[kind]})


def _binary(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    a, b = node.inputs
    forward, swapped = _BINARY[cast(Binary, node.op).kind]
    for scalar, other, kind in ((b, a, forward), (a, b, swapped)):
        if scalar in sheet.weights and sheet.weights[scalar].numel() == 1 and other not in sheet.weights:
            require(len(sheet.shapes[scalar]) <= len(sheet.shapes[other]), "a scalar of higher rank")
            sheet.add("BinaryOp", (other,), output, {0: kind, 1: 1, 2: float(sheet.weights[scalar])})
            return
    rank = len(sheet.shapes[node.output])
    sheet.add("BinaryOp", (sheet.operand(a, rank), sheet.operand(b, rank)), output, {0: forward})


def _concat(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    rank = len(sheet.shapes[node.output])
    dim = cast(Concat, node.op).dim % rank
    require(dim > 0, "joining along the batch")
    sheet.add("Concat", tuple(sheet.operand(name, rank) for name in node.inputs), output, {0: dim - 1})


def _slice(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(Slice, node.op)
    shape = sheet.shapes[node.inputs[0]]
    dim = op.dim % len(shape)
    start, stop, step = slice(op.start, op.stop, op.step).indices(shape[dim])
    require(step == 1, f"a step of {step}")
    require(dim > 0, "slicing the batch")
    sheet.add("Crop", node.inputs, output, {9: [start], 10: [stop], 11: [dim - 1]})


def _pixel_shuffle(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(PixelShuffle, node.op)
    sheet.add("PixelShuffle", node.inputs, output, {0: op.factor, 1: int(op.order == "dcr")})


def _pixel_unshuffle(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(PixelUnshuffle, node.op)
    sheet.add("Reorg", node.inputs, output, {0: op.factor, 1: int(op.order == "dcr")})


def _pad(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(Pad, node.op)
    padded(sheet, node.inputs[0], op.padding, op.mode, op.value, output)


def _pool(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(Pool2d, node.op)
    require(op.dilation == (1, 1), f"dilation {op.dilation}")
    top, left, bottom, right = op.padding
    source, result = sheet.shapes[node.inputs[0]][2:], sheet.shapes[node.output][2:]
    tail = False
    for axis, pads in enumerate((top + bottom, left + right)):
        span = source[axis] + pads - op.kernel[axis]
        require(span >= 0, "a window larger than the padded image")
        steps = -(-span // op.stride[axis]) if op.ceil_mode else span // op.stride[axis]
        require(steps + 1 == result[axis], "a last window that starts in the padding")
        tail = tail or span % op.stride[axis] != 0
    if op.kind == "avg" and op.ceil_mode and tail:
        require(not op.count_include_pad, "an average that counts padding but not what lies past it")
    params: Params = {0: int(op.kind == "avg"), 1: op.kernel[1], 11: op.kernel[0], 2: op.stride[1], 12: op.stride[0]}
    params |= {3: left, 13: top, 14: right, 15: bottom, 5: int(not op.ceil_mode), 6: int(op.count_include_pad)}
    sheet.add("Pooling", node.inputs, output, params)


def _adaptive_pool(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(AdaptivePool2d, node.op)
    sheet.add("Pooling", node.inputs, output, {0: int(op.kind == "avg"), 7: 1, 8: op.size[1], 18: op.size[0]})


def _mean(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(Mean, node.op)
    rank = len(sheet.shapes[node.inputs[0]])
    axes = sorted(dim % rank for dim in op.dims)
    require(bool(axes) and axes[0] > 0, "averaging over the batch")
    params: Params = {0: 3, 1: 0, 3: [axis - 1 for axis in axes], 4: int(op.keepdim), 5: 1}
    sheet.add("Reduction", node.inputs, output, params)


def _batch_norm(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(BatchNorm, node.op)
    x, *names = node.inputs
    scale, offset, mean, variance = (sheet.constant(name, "statistic") for name in names)
    data = b"".join(raw(tensor) for tensor in (scale, mean, variance, offset))
    sheet.add("BatchNorm", (x,), output, {0: scale.numel(), 1: float(op.eps)}, data)


def _group_norm(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(GroupNorm, node.op)
    x, *names = node.inputs
    require(len(sheet.shapes[x]) == 4, f"an input of rank {len(sheet.shapes[x])}")
    scale, offset = (sheet.constant(name, "scale or offset") for name in names)
    channels, height, width = sheet.shapes[x][1:]
    size = height * width * channels // (op.groups or channels)
    require(height * width > 1, "one pixel, whose variance of 0 is lost in rounding")
    require(size <= _LARGEST_GROUP, f"a group of {size} elements, more than it sums exactly")
    data = raw(scale) + raw(offset)
    if op.groups in (0, channels):
        sheet.add("InstanceNorm", (x,), output, {0: channels, 1: float(op.eps), 2: 1}, data)
    else:
        sheet.add("GroupNorm", (x,), output, {0: op.groups, 1: channels, 2: float(op.eps), 3: 1}, data)


def _reshape(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    sheet.add("Reshape", node.inputs, output, extent(sheet.shapes[node.output][1:]))


WRITERS: dict[type[Op], Writer] = {
    Activation: _activation,
    AdaptivePool2d: _adaptive_pool,
    BatchNorm: _batch_norm,
    Binary: _binary,
    Clamp: _clamp,
    Concat: _concat,
    Conv2d: conv,
    ConvTranspose2d: conv_transpose,
    GroupNorm: _group_norm,
    Linear: linear,
    Mean: _mean,
    Pad: _pad,
    PixelShuffle: _pixel_shuffle,
    PixelUnshuffle: _pixel_unshuffle,
    Pool2d: _pool,
    PRelu: _prelu,
    Reshape: _reshape,
    Resize: resize,
    Slice: _slice,
    Unary: _unary,
}
