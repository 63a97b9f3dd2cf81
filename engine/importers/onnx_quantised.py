"""Quantised ONNX (QDQ form): layers compute on the integers themselves, so that no sum rounds and tiles agree.

x is stored as q = round(x / s) + z. A layer of quantised input and weights is s_x · s_w · sum((q_x - z_x) · q_w), and
float32 adds whole numbers exactly up to 2^24, in whatever order. Added as fractions, the same sum would differ in its
last digit from one tile to another, and the next rounding would turn that into a whole level.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilefuse.importers.onnx_builder import Constant, Grid, Levels, Scaled, Value
from tilefuse.importers.onnx_call import Call
from tilefuse.ops import Binary, Clamp, Conv2d, ConvTranspose2d, Linear, Round

LARGEST_SUM = 2**24
STORED = frozenset({"int8", "uint8", "int16", "uint16", "int32"})

Numbers = NDArray[np.float32]


def quantize_linear(
    call: Call, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0, precision: int = 0, saturate: int = 1
) -> Value:
    del axis, saturate  # one scale has no axis, and saturate concerns 8-bit floats, which are refused
    if block_size or output_dtype or precision:
        raise call.refuse("attributes block_size, output_dtype and precision are not supported")
    x = call.value(0)
    if isinstance(x, Constant):
        raise call.refuse("quantising a constant while running is not supported; store its integers")
    scale, zero = _parameters(call)
    if scale.size != 1:
        raise call.refuse("a scale for each channel is supported for weights only")
    kind = np.iinfo(zero.dtype)
    offset = int(zero.reshape(-1)[0])
    low, high = int(kind.min) - offset, int(kind.max) - offset
    if isinstance(x, Scaled):
        # As integer arithmetic requantises: by one product.
        steps = call.add(Binary("mul"), x.base, _constant(call, (x.scale / scale.reshape(())).astype(np.float32)))
    else:
        steps = call.add(Binary("div"), x, _constant(call, scale.reshape(())))
    base = call.add(Clamp(low, high), call.add(Round(), steps))
    return Levels(call.builder.tensor(base), offset, max(-low, high))


def dequantize_linear(call: Call, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0) -> Value:
    if block_size or output_dtype:
        raise call.refuse("attributes block_size and output_dtype are not supported")
    x = call.value(0)
    if not isinstance(x, Constant | Levels):
        raise call.refuse("integers are supported from weights and from QuantizeLinear only")
    scale, zero = _parameters(call)
    if isinstance(x, Levels):
        if scale.size != 1 or int(zero.reshape(-1)[0]) != x.zero:
            raise call.refuse("another zero point than that of its QuantizeLinear, or a scale for each channel")
        return Scaled(call.outputs[0], x.base, scale.reshape(()), x.peak)
    if x.array.dtype.name not in STORED:
        raise call.refuse(f"integers of type {x.array.dtype.name} are not supported; {', '.join(sorted(STORED))} are")
    rank = len(x.shape)
    sizes = [1] * rank
    if scale.size != 1:
        sizes[axis % rank] = scale.size
    levels = x.array.astype(np.int64) - zero.astype(np.int64).reshape(sizes if zero.size != 1 else [1] * rank)
    array = (levels * scale.astype(np.float64).reshape(sizes)).astype(np.float32)
    call.builder.spend(array.size)
    return Constant(call.outputs[0], array, Grid(levels, scale.reshape(-1), axis % rank if rank else 0))


def layer(call: Call, op: Conv2d | ConvTranspose2d | Linear, x: Value, weight: Value, *bias: Value) -> Value:
    """Append a layer: on whole numbers where input and weights are quantised and no sum can pass 2^24."""
    whole = _on_whole_numbers(call, op, x, weight, *bias)
    return whole if whole is not None else call.add(op, x, weight, *bias)


def _on_whole_numbers(
    call: Call, op: Conv2d | ConvTranspose2d | Linear, x: Value, weight: Value, *bias: Value
) -> Value | None:
    axis = _channel_axis(op)
    if axis is None or not isinstance(x, Scaled) or x.scale.size != 1:
        return None
    if not isinstance(weight, Constant) or weight.grid is None:
        return None
    levels, scale = weight.grid.levels, np.float32(x.scale.reshape(())) * weight.grid.scale
    if scale.size != 1 and weight.grid.axis != axis:
        return None
    others = tuple(i for i in range(levels.ndim) if i != axis)
    largest = float(np.abs(levels).sum(axis=others).max()) * x.peak
    shift = _whole_bias(bias, scale)
    largest += float(np.abs(shift).max()) if shift is not None else 0.0
    if largest > LARGEST_SUM:
        return None
    operands = [_constant(call, levels.astype(np.float32))]
    if shift is not None:
        operands.append(_constant(call, shift.astype(np.float32)))
    total = call.add(op, x.base, *operands)
    # Whole already; libraries may not fold the next product into the weights through it.
    base = call.builder.tensor(call.add(Round(), total))
    shape = [-1, *[1] * (len(base.shape) - 2)] if scale.size != 1 else []
    scaled = Scaled(call.outputs[0], base, scale.astype(np.float32).reshape(shape), int(largest))
    if not bias or shift is not None:
        return scaled
    fraction = bias[0]
    if isinstance(fraction, Constant):
        fraction = _constant(call, fraction.array.reshape([-1, *[1] * (len(base.shape) - 2)]))
    return call.add(Binary("add"), scaled, fraction)


def _channel_axis(op: Conv2d | ConvTranspose2d | Linear) -> int | None:
    """Axis of a weight that counts the output's channels; None for a layer this form does not suit."""
    match op:
        case Conv2d():
            return 0
        case ConvTranspose2d(groups=1):
            return 1
        case Linear(alpha=1.0, beta=1.0, transpose_input=False, transpose_weight=transposed):
            return 0 if transposed else 1
    return None


def _whole_bias(bias: tuple[Value, ...], scale: Numbers) -> NDArray[np.int64] | None:
    """Give the integers of a bias that was quantised by the scale of the sums it is added to."""
    if not bias or not isinstance(bias[0], Constant) or bias[0].grid is None:
        return None
    grid = bias[0].grid
    same = grid.scale.size in (1, scale.size) and np.allclose(grid.scale, scale, rtol=1e-6, atol=0)
    levels: NDArray[np.int64] = grid.levels
    return levels if same and levels.ndim == 1 else None


def _parameters(call: Call) -> tuple[Numbers, NDArray[Any]]:
    scale = call.constant(1, "the scale")
    zero: NDArray[Any] = call.constant(2, "the zero point") if call.has(2) else np.zeros(1, np.uint8)
    if zero.dtype.name not in STORED:
        raise call.refuse(f"a zero point of type {zero.dtype.name} is not supported; {', '.join(sorted(STORED))} are")
    if scale.dtype.kind != "f" or scale.size < 1 or zero.size not in (1, scale.size):
        raise call.refuse("scale and zero point do not fit together")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise call.refuse("a scale is not a positive number")
    return scale.astype(np.float32), zero


def _constant(call: Call, array: NDArray[np.generic]) -> Constant:
    return Constant(call.builder.unique(f"{call.outputs[0]}.number"), array.astype(np.float32))
