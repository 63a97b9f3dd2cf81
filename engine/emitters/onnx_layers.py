"""Layers with weights or windows, and normalisation, as ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tilefuse.emitters.onnx_layout import emit_padding
from tilefuse.emitters.onnx_sheet import Sheet
from tilefuse.graph import Shape
from tilefuse.ops import (
    NO_PADDING,
    AdaptivePool2d,
    BatchNorm,
    Conv2d,
    ConvTranspose2d,
    GroupNorm,
    Linear,
    Mean,
    Pool2d,
)


def conv(sheet: Sheet, op: Conv2d, inputs: Sequence[str], output: str) -> None:
    x, *rest = inputs
    padding = op.padding
    if op.padding_mode != "constant" or min(padding) < 0:
        x = emit_padding(
            sheet, x, padding, op.padding_mode, 0.0, len(sheet.shapes[x]), sheet.unique(f"{output}/padded")
        )
        padding = NO_PADDING
    sheet.add(
        "Conv",
        [x, *rest],
        output,
        strides=op.stride,
        pads=padding,
        dilations=op.dilation,
        group=op.groups,
        kernel_shape=sheet.shapes[inputs[1]][2:],
    )


def conv_transpose(sheet: Sheet, op: ConvTranspose2d, inputs: Sequence[str], output: str) -> None:
    x, weight, *bias = inputs
    attributes = {
        "strides": op.stride,
        "dilations": op.dilation,
        "group": op.groups,
        "kernel_shape": sheet.shapes[weight][2:],
    }
    usual = all(o < max(s, d) for o, s, d in zip(op.output_padding, op.stride, op.dilation, strict=True))
    if usual and min(op.padding) >= 0:
        sheet.add("ConvTranspose", inputs, output, pads=op.padding, output_padding=op.output_padding, **attributes)
        return
    # Past what libraries take: the full result, cropped or extended by rows no input reaches, then the bias.
    full = sheet.step("ConvTranspose", [x, weight], output, **attributes)
    top, left, bottom, right = op.padding
    extra_y, extra_x = op.output_padding
    sides = (-top, -left, extra_y - bottom, extra_x - right)
    end = sheet.unique(f"{output}/cropped") if bias else output
    cropped = emit_padding(sheet, full, sides, "constant", 0.0, 4, end)
    if bias:
        sheet.add("Add", [cropped, sheet.per_channel(bias[0], output)], output)


def linear(sheet: Sheet, op: Linear, inputs: Sequence[str], output: str) -> None:
    x, weight, *bias = inputs
    if len(sheet.shapes[x]) == 2 and len(sheet.shapes[weight]) == 2:
        attributes = {"transA": int(op.transpose_input), "transB": int(op.transpose_weight)}
        sheet.add("Gemm", inputs, output, alpha=float(op.alpha), beta=float(op.beta), **attributes)
        return
    if op.transpose_input:
        x = sheet.step("Transpose", [x], output, perm=_last_two_swapped(len(sheet.shapes[x])))
    if op.transpose_weight:
        weight = sheet.step("Transpose", [weight], output, perm=_last_two_swapped(len(sheet.shapes[weight])))
    terms = ["MatMul", *(["alpha"] if op.alpha != 1 else []), *(["beta"] if bias else [])]
    value = sheet.add("MatMul", [x, weight], output if len(terms) == 1 else sheet.unique(f"{output}/MatMul"))
    if op.alpha != 1:
        end = output if not bias else sheet.unique(f"{output}/alpha")
        value = sheet.add("Mul", [value, sheet.number(op.alpha, f"{output}/factor")], end)
    if bias:
        shift = bias[0]
        if op.beta != 1:
            shift = sheet.step("Mul", [shift, sheet.number(op.beta, f"{output}/share")], output)
        sheet.add("Add", [value, shift], output)


def _last_two_swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def pool(sheet: Sheet, op: Pool2d, inputs: Sequence[str], output: str) -> None:
    (x,) = inputs
    padding, ceil_mode = op.padding, op.ceil_mode
    if ceil_mode and sheet.fixed:
        # Libraries disagree on how long a result rounded up is, so it is spelt out as padding where that is the same.
        extra = [max(_overhang(op, axis, sheet.shapes[x], sheet.shapes[output]), 0) for axis in (0, 1)]
        if op.kind == "max" or not op.count_include_pad or max(extra) == 0:
            padding = (padding[0], padding[1], padding[2] + extra[0], padding[3] + extra[1])
            ceil_mode = False
    if any(side >= op.kernel[position % 2] for position, side in enumerate(padding)):
        if op.kind == "avg" or ceil_mode:
            raise sheet.refuse(op, f"padding {op.padding} and kernel {op.kernel}")
        x = emit_padding(sheet, x, padding, "constant", -math.inf, 4, sheet.unique(f"{output}/padded"))
        padding = NO_PADDING
    attributes: dict[str, object] = {
        "kernel_shape": op.kernel,
        "strides": op.stride,
        "dilations": op.dilation,
        "pads": padding,
        "ceil_mode": int(ceil_mode),
    }
    if op.kind == "avg":
        attributes["count_include_pad"] = int(op.count_include_pad)
    sheet.add("AveragePool" if op.kind == "avg" else "MaxPool", [x], output, **attributes)


def _overhang(op: Pool2d, axis: int, shape: Shape, made: Shape) -> int:
    """Rows that the last window reaches past the padded input."""
    span = op.dilation[axis] * (op.kernel[axis] - 1) + 1
    padded = shape[2 + axis] + op.padding[axis] + op.padding[2 + axis]
    return (made[2 + axis] - 1) * op.stride[axis] + span - padded


def adaptive_pool(sheet: Sheet, op: AdaptivePool2d, inputs: Sequence[str], output: str) -> None:
    (x,) = inputs
    if op.size == (1, 1):
        sheet.add("GlobalAveragePool" if op.kind == "avg" else "GlobalMaxPool", [x], output)
        return
    if not sheet.fixed:
        raise sheet.refuse(op, f"size {op.size} of an image of unknown size")
    height, width = sheet.shapes[x][2:]
    if height % op.size[0] == 0 and width % op.size[1] == 0:
        kernel = (height // op.size[0], width // op.size[1])
        sheet.add("AveragePool" if op.kind == "avg" else "MaxPool", [x], output, kernel_shape=kernel, strides=kernel)
        return
    if op.kind == "max":
        raise sheet.refuse(op, f"kind max from {height}x{width} to {op.size[0]}x{op.size[1]}, which does not divide it")
    rows = sheet.tensor(_averages(height, op.size[0]).to(sheet.dtype), f"{output}/rows")
    columns = sheet.tensor(_averages(width, op.size[1]).T.to(sheet.dtype), f"{output}/columns")
    sheet.add("MatMul", [sheet.step("MatMul", [rows, x], output), columns], output)


def _averages(size: int, out: int) -> torch.Tensor:
    """Matrix [out, size] that averages the bins of adaptive pooling."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        first, last = i * size // out, -(-(i + 1) * size // out)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def mean(sheet: Sheet, op: Mean, inputs: Sequence[str], output: str) -> None:
    axes = sheet.ints(op.dims, f"{output}/axes")
    sheet.add("ReduceMean", [inputs[0], axes], output, keepdims=int(op.keepdim))


def batch_norm(sheet: Sheet, op: BatchNorm, inputs: Sequence[str], output: str) -> None:
    sheet.add("BatchNormalization", inputs, output, epsilon=op.eps)


def group_norm(sheet: Sheet, op: GroupNorm, inputs: Sequence[str], output: str) -> None:
    x, weight, bias = inputs
    shape = sheet.shapes[x]
    groups = op.groups or shape[1]
    if groups == shape[1] and len(shape) > 2:
        sheet.add("InstanceNormalization", inputs, output, epsilon=op.eps)
        return
    grouped = sheet.step("Reshape", [x, sheet.ints([0, groups, -1], f"{output}/groups")], output)
    ones = sheet.tensor(torch.ones(groups, dtype=sheet.dtype), f"{output}/ones")
    zeros = sheet.tensor(torch.zeros(groups, dtype=sheet.dtype), f"{output}/zeros")
    normal = sheet.step("InstanceNormalization", [grouped, ones, zeros], output, epsilon=op.eps)
    size = sheet.ints(shape, f"{output}/size") if sheet.fixed else sheet.step("Shape", [x], output)
    back = sheet.step("Reshape", [normal, size], output)
    scale, shift = (sheet.per_channel(name, output, len(shape) - 2) for name in (weight, bias))
    sheet.add("Add", [sheet.step("Mul", [back, scale], output), shift], output)
