"""Layers with weights, averages and normalisation, as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tilefuse.emitters.onnx_layout import emit_padding
from tilefuse.emitters.onnx_sheet import Sheet
from tilefuse.ops import (
    NO_PADDING,
    BatchNorm,
    Conv2d,
    ConvTranspose2d,
    GroupNorm,
    Linear,
    Mean,
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
