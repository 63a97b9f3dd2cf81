"""ONNX layers with weights or windows: convolution, pooling, normalisation, matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tilefuse.importers.onnx_builder import Constant, Value, View
from tilefuse.importers.onnx_call import Call
from tilefuse.importers.onnx_quantised import layer
from tilefuse.importers.onnx_shapes import Dims
from tilefuse.importers.onnx_sizes import Dim
from tilefuse.importers.onnx_views import whole
from tilefuse.ops import (
    AdaptivePool2d,
    BatchNorm,
    Conv2d,
    ConvTranspose2d,
    GroupNorm,
    Linear,
    Mean,
    Pair,
    Pool2d,
    Sides,
)

Ints = Sequence[int] | None


def conv(
    call: Call,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Value:
    x, weight = call.image(0), call.image(1)
    kernel = _kernel(call, weight, kernel_shape)
    stride, dilation = call.pair(strides, "strides"), call.pair(dilations, "dilations")
    padding = _padding(call, x.shape, kernel, stride, dilation, auto_pad, pads)
    return layer(call, Conv2d(stride, padding, dilation, group), x, weight, *call.values()[2:3])


def conv_transpose(
    call: Call,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    output_padding: Ints = None,
    output_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Value:
    x, weight = call.image(0), call.image(1)
    kernel = _kernel(call, weight, kernel_shape)
    stride, dilation = call.pair(strides, "strides"), call.pair(dilations, "dilations")
    extra = call.pair(output_padding, "output_padding", 0)
    padding = _four(call, pads)
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        ends = []
        for axis in (0, 1):
            full = (kernel[axis] - 1) * dilation[axis] + 1 + extra[axis]
            if output_shape is None:
                total = full - stride[axis]  # the output is stride times the input
            else:
                size = _fixed(call, x.shape[2 + axis], "output_shape")
                total = stride[axis] * (size - 1) + full - call.pair(output_shape[-2:], "output_shape")[axis]
            # What an output larger than the full result lacks is added after the data.
            half = max(total, 0) // 2
            first = half if auto_pad == "SAME_UPPER" else max(total, 0) - half
            ends.append((first, total - first))
        padding = (ends[0][0], ends[1][0], ends[0][1], ends[1][1])
    elif auto_pad not in ("NOTSET", "VALID"):
        raise call.refuse(f"attribute auto_pad = {auto_pad} is not supported")
    op = ConvTranspose2d(stride, padding, extra, dilation, group)
    return layer(call, op, x, weight, *call.values()[2:3])


def max_pool(
    call: Call,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    storage_order: int = 0,
    strides: Ints = None,
) -> Value:
    del storage_order  # concerns the output Indices, which is refused
    return _pool(call, "max", kernel_shape, auto_pad, ceil_mode, 1, dilations, pads, strides)


def average_pool(
    call: Call,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Value:
    return _pool(call, "avg", kernel_shape, auto_pad, ceil_mode, count_include_pad, dilations, pads, strides)


def _pool(
    call: Call,
    kind: Literal["max", "avg"],
    kernel_shape: Sequence[int],
    auto_pad: str,
    ceil_mode: int,
    count_include_pad: int,
    dilations: Ints,
    pads: Ints,
    strides: Ints,
) -> Value:
    x = call.image(0)
    kernel = call.pair(kernel_shape, "kernel_shape")
    stride, dilation = call.pair(strides, "strides"), call.pair(dilations, "dilations")
    padding = _padding(call, x.shape, kernel, stride, dilation, auto_pad, pads)
    return call.add(Pool2d(kind, kernel, stride, padding, dilation, bool(ceil_mode), bool(count_include_pad)), x)


def global_average_pool(call: Call) -> Value:
    x = call.value(0)
    if len(x.shape) == 4:
        return call.add(AdaptivePool2d("avg", (1, 1)), x)
    return call.add(Mean(tuple(range(2, len(x.shape)))), x)


def global_max_pool(call: Call) -> Value:
    return call.add(AdaptivePool2d("max", (1, 1)), call.image(0))


def batch_normalization(
    call: Call, *, epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0, spatial: int = 1
) -> Value:
    del momentum  # concerns training
    if training_mode or (call.opset < 14 and sum(map(bool, call.outputs)) > 1):
        raise call.refuse("attribute training_mode = 1 is not supported; export the model in eval mode")
    if not spatial:
        raise call.refuse("attribute spatial = 0 is not supported")
    return call.add(BatchNorm(epsilon), *(call.value(i) for i in range(5)))


def instance_normalization(call: Call, *, epsilon: float = 1e-5) -> Value:
    x, weight, bias = call.value(0), call.value(1), call.value(2)
    if isinstance(x, View) and len(x.base.shape) > 3:
        grouped = _grouped(call, x, weight, bias, epsilon)
        if grouped is not None:
            return grouped
    return call.add(GroupNorm(0, epsilon), x, weight, bias)


def _grouped(call: Call, x: View, weight: Value, bias: Value, epsilon: float) -> Value | None:
    """Read Reshape [N, groups, -1] → InstanceNormalization, which is how exporters write group norm."""
    channels, groups = x.base.shape[1], x.shape[1]
    if not isinstance(channels, int) or not isinstance(groups, int) or channels % groups:
        return None
    if not isinstance(weight, Constant) or not isinstance(bias, Constant):
        return None
    if x.shape[0] != x.base.shape[0] or whole(x.base.shape).reshaped(x.shape) != x.layout:
        return None
    parts = [
        Constant(call.builder.unique(f"{part.name}.each"), np.repeat(part.array.reshape(-1), channels // groups))
        for part in (weight, bias)
    ]
    base = call.builder.tensor(call.add(GroupNorm(groups, epsilon), x.base, *parts))
    return View(call.outputs[0], base, x.layout, call.label)


def group_normalization(call: Call, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1) -> Value:
    del stash_type  # the precision of the statistics; ours is float32
    x, weight, bias = call.value(0), call.value(1), call.value(2)
    channels = x.shape[1]
    if call.opset >= 21 or channels == num_groups:
        return call.add(GroupNorm(num_groups, epsilon), x, weight, bias)
    # Until opset 21 scale and bias had one number a group.
    if not isinstance(weight, Constant) or not isinstance(bias, Constant) or not isinstance(channels, int):
        raise call.refuse("scale of one number a group (before opset 21) must be a constant")
    parts = [
        Constant(call.builder.unique(f"{part.name}.each"), np.repeat(part.array, channels // num_groups))
        for part in (weight, bias)
    ]
    return call.add(GroupNorm(num_groups, epsilon), x, *parts)


def gemm(call: Call, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0) -> Value:  # noqa: N803
    op = Linear(alpha, beta, bool(transA), bool(transB))
    return layer(call, op, call.value(0), call.value(1), *call.values()[2:3])


def mat_mul(call: Call) -> Value:
    x, weight = call.value(0), call.value(1)
    if len(x.shape) < 2 or len(weight.shape) != 2:
        raise call.refuse(
            f"a product of ranks {len(x.shape)} and {len(weight.shape)}; only a matrix on the right is supported"
        )
    if isinstance(weight, Constant):
        turned = Constant(call.builder.unique(f"{weight.name}.T"), np.ascontiguousarray(weight.array.T))
        return call.add(Linear(), x, turned)
    return call.add(Linear(transpose_weight=False), x, weight)


def _kernel(call: Call, weight: Value, kernel_shape: Ints) -> Pair:
    height, width = weight.shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        raise call.refuse("kernel_shape of an unknown size")
    if kernel_shape is not None and tuple(kernel_shape) != (height, width):
        raise call.refuse(f"attribute kernel_shape = {list(kernel_shape)} contradicts the weight's {[height, width]}")
    return height, width


def _four(call: Call, pads: Ints) -> Sides:
    if pads is None:
        return 0, 0, 0, 0
    if len(pads) != 4 or min(pads) < 0:
        raise call.refuse(f"attribute pads = {list(pads)} is not supported; four numbers of at least 0 are")
    return pads[0], pads[1], pads[2], pads[3]


def _fixed(call: Call, size: Dim, attribute: str) -> int:
    if not isinstance(size, int):
        raise call.refuse(f"attribute {attribute} needs an input of fixed height and width")
    return size


def _padding(call: Call, x: Dims, kernel: Pair, stride: Pair, dilation: Pair, auto_pad: str, pads: Ints) -> Sides:
    """Work out the padding; SAME makes ceil(size / stride) outputs."""
    if auto_pad in ("NOTSET", "VALID"):
        return _four(call, pads if auto_pad == "NOTSET" else None)
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise call.refuse(f"attribute auto_pad = {auto_pad} is not supported")
    ends = []
    for axis in (0, 1):
        span = (kernel[axis] - 1) * dilation[axis] + 1
        total = span - 1
        if stride[axis] > 1:
            size = _fixed(call, x[2 + axis], f"auto_pad = {auto_pad} with a stride")
            total = max((-(-size // stride[axis]) - 1) * stride[axis] + span - size, 0)
        half = total // 2
        ends.append((half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]
