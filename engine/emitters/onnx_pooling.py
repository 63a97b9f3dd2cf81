"""Pooling as ONNX nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tilefuse.emitters.onnx_layout import emit_padding
from tilefuse.emitters.onnx_sheet import Sheet
from tilefuse.graph import Shape
from tilefuse.ops import AdaptivePool2d, Pool2d, Sides


def pool(sheet: Sheet, op: Pool2d, inputs: Sequence[str], output: str) -> None:
    (x,) = inputs
    padding, ceil_mode = op.padding, op.ceil_mode
    uneven = False
    if ceil_mode and sheet.fixed:
        # Libraries disagree on how long a result rounded up is, so the rows it reaches past are spelt out as padding.
        extra = [max(_overhang(op, axis, sheet.shapes[x], sheet.shapes[output]), 0) for axis in (0, 1)]
        padding, ceil_mode = (padding[0], padding[1], padding[2] + extra[0], padding[3] + extra[1]), False
        uneven = op.kind == "avg" and op.count_include_pad and max(extra) > 0
    if uneven or any(side >= op.kernel[position % 2] for position, side in enumerate(padding)):
        _pool_padded(sheet, op, x, padding, output)
        return
    attributes: dict[str, object] = {"count_include_pad": int(op.count_include_pad)} if op.kind == "avg" else {}
    sheet.add(
        "AveragePool" if op.kind == "avg" else "MaxPool",
        [x],
        output,
        kernel_shape=op.kernel,
        strides=op.stride,
        dilations=op.dilation,
        pads=padding,
        ceil_mode=int(ceil_mode),
        **attributes,
    )


def _pool_padded(sheet: Sheet, op: Pool2d, x: str, padding: Sides, output: str) -> None:
    """Pool where the pooling nodes don't take the padding: a maximum of padded data, an average as sum and share."""
    if not sheet.fixed:
        raise sheet.refuse(op, f"padding {op.padding} and kernel {op.kernel} at an open size; give shapes")
    attributes = {"kernel_shape": op.kernel, "strides": op.stride, "dilations": op.dilation}
    if op.kind == "max":
        padded = emit_padding(sheet, x, padding, "constant", -math.inf, 4, sheet.unique(f"{output}/padded"))
        sheet.add("MaxPool", [padded], output, **attributes)
        return
    channels = sheet.shapes[x][1]
    ones = sheet.tensor(torch.ones(channels, 1, *op.kernel, dtype=sheet.dtype), f"{output}/ones")
    total = sheet.step("Conv", [x, ones], output, group=channels, pads=padding, **attributes)
    counts = [_counts(op, axis, sheet.shapes[x][2 + axis], sheet.shapes[output][2 + axis]) for axis in (0, 1)]
    share = 1 / (counts[0].view(-1, 1) * counts[1])
    sheet.add("Mul", [total, sheet.tensor(share.to(sheet.dtype), f"{output}/share")], output)


def _overhang(op: Pool2d, axis: int, shape: Shape, made: Shape) -> int:
    """Rows that the last window reaches past the padded input."""
    span = op.dilation[axis] * (op.kernel[axis] - 1) + 1
    padded = shape[2 + axis] + op.padding[axis] + op.padding[2 + axis]
    return (made[2 + axis] - 1) * op.stride[axis] + span - padded


def _counts(op: Pool2d, axis: int, size: int, out: int) -> torch.Tensor:
    """Number of rows (or columns) each window's average is divided by."""
    before, after = (op.padding[axis], op.padding[2 + axis]) if op.count_include_pad else (0, 0)
    first = torch.arange(out).view(-1, 1) * op.stride[axis] - op.padding[axis]
    rows = first + torch.arange(op.kernel[axis]) * op.dilation[axis]
    return ((rows >= -before) & (rows < size + after)).sum(1).double()


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
