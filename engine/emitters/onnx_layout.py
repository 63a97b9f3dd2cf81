"""Ops that move or interpolate elements, as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch

from tilefuse.emitters.onnx_sheet import INT64_MAX, Sheet
from tilefuse.ops import Concat, Pad, PadMode, PixelShuffle, PixelUnshuffle, Reshape, Resize, Sides, Slice

PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def concat(sheet: Sheet, op: Concat, inputs: Sequence[str], output: str) -> None:
    sheet.add("Concat", inputs, output, axis=op.dim)


def slice_(sheet: Sheet, op: Slice, inputs: Sequence[str], output: str) -> None:
    _slice(sheet, inputs[0], op.dim, op.start, op.stop, output, op.step)


def _slice(sheet: Sheet, x: str, dim: int, start: int, stop: int | None, output: str, step: int = 1) -> str:
    bounds = [start], [INT64_MAX if stop is None else stop], [dim], [step]
    names = ("starts", "ends", "axes", "steps")
    given = [sheet.ints(bound, f"{output}/{name}") for bound, name in zip(bounds, names, strict=True)]
    return sheet.add("Slice", [x, *given], output)


def pixel_shuffle(sheet: Sheet, op: PixelShuffle, inputs: Sequence[str], output: str) -> None:
    sheet.add("DepthToSpace", inputs, output, blocksize=op.factor, mode=op.order.upper())


def pixel_unshuffle(sheet: Sheet, op: PixelUnshuffle, inputs: Sequence[str], output: str) -> None:
    if op.order == "dcr":
        sheet.add("SpaceToDepth", inputs, output, blocksize=op.factor)
        return
    # A convolution with one 1 a channel, not SpaceToDepth and Gather: OpenVINO (2026.4) merges a Gather of channels
    # into the next convolution by the inverse order, and gives wrong results without a word.
    factor, channels = op.factor, sheet.shapes[inputs[0]][1]
    phases = torch.eye(factor**2).view(factor**2, 1, factor, factor).repeat(channels, 1, 1, 1)
    weight = sheet.tensor(phases.to(sheet.dtype), f"{output}/phases")
    strides = [factor, factor]
    sheet.add("Conv", [inputs[0], weight], output, kernel_shape=strides, strides=strides, group=channels)


def reshape(sheet: Sheet, op: Reshape, inputs: Sequence[str], output: str) -> None:
    sheet.add("Reshape", [inputs[0], sheet.ints(op.shape, f"{output}/shape")], output)


def pad(sheet: Sheet, op: Pad, inputs: Sequence[str], output: str) -> None:
    (x,) = inputs
    if emit_padding(sheet, x, op.padding, op.mode, op.value, len(sheet.shapes[x]), output) == x:
        sheet.add("Identity", [x], output)


def emit_padding(sheet: Sheet, x: str, sides: Sides, mode: PadMode, value: float, rank: int, output: str) -> str:
    """Pad height and width, then crop where sides are negative; return the last value's name, `output` unless none."""
    top, left, bottom, right = (max(side, 0) for side in sides)
    crops = [
        (dim, -before if before < 0 else 0, after if after < 0 else None)
        for dim, before, after in ((rank - 2, sides[0], sides[2]), (rank - 1, sides[1], sides[3]))
        if before < 0 or after < 0
    ]
    if mode == "circular":
        # torch wraps what is left after cropping.
        wraps = any((top, left, bottom, right))
        x = _crop(sheet, x, crops, sheet.unique(f"{output}/crop") if wraps else output)
        return _wrap(sheet, x, (rank - 2, top, bottom), (rank - 1, left, right), output) if wraps else x
    if any((top, left, bottom, right)):
        zeros = [0] * (rank - 2)
        pads = sheet.ints([*zeros, top, left, *zeros, bottom, right], f"{output}/pads")
        filler = [sheet.number(value, f"{output}/value")] if mode == "constant" else []
        end = sheet.unique(f"{output}/Pad") if crops else output
        x = sheet.add("Pad", [x, pads, *filler], end, mode=PAD_MODES[mode])
    return _crop(sheet, x, crops, output)


def _crop(sheet: Sheet, x: str, crops: Sequence[tuple[int, int, int | None]], output: str) -> str:
    for position, (dim, start, stop) in enumerate(crops):
        end = output if position == len(crops) - 1 else sheet.unique(f"{output}/crop")
        x = _slice(sheet, x, dim, start, stop, end)
    return x


def _wrap(sheet: Sheet, x: str, rows: tuple[int, int, int], columns: tuple[int, int, int], output: str) -> str:
    """Pad circularly by slices, which every library has."""
    axes = [axis for axis in (rows, columns) if any(axis[1:])]
    for position, (dim, before, after) in enumerate(axes):
        pieces = [x]
        if before:
            pieces.insert(0, _slice(sheet, x, dim, -before, None, sheet.unique(f"{output}/last")))
        if after:
            pieces.append(_slice(sheet, x, dim, 0, after, sheet.unique(f"{output}/first")))
        end = output if position == len(axes) - 1 else sheet.unique(f"{output}/rows")
        x = sheet.add("Concat", pieces, end, axis=dim)
    return x


def resize(sheet: Sheet, op: Resize, inputs: Sequence[str], output: str) -> None:
    (x,) = inputs
    batch, channels, height, width = sheet.shapes[x]
    size = op.output_size(height, width)
    scale = op.scale or (Fraction(size[0], height), Fraction(size[1], width))
    if not (sheet.fixed or op.scale or op.mode != "nearest") or not all(map(op.survives_rounding, scale)):
        if not sheet.fixed:
            raise sheet.refuse(op, f"{op.coordinates} nearest by {scale[0]} x {scale[1]} at an open size; give shapes")
        _copy(sheet, op, x, scale, output)
        return
    if sheet.fixed and (op.exclude_outside or op.coordinates == "half_pixel_symmetric"):
        _multiply(sheet, op, x, scale, output)
        return
    attributes: dict[str, object] = {"coordinate_transformation_mode": op.coordinates, "mode": op.mode}
    if op.mode == "nearest":
        attributes["nearest_mode"] = op.rounding
    if op.mode == "cubic":
        attributes |= {"cubic_coeff_a": op.cubic_a, "exclude_outside": int(op.exclude_outside)}
    if op.scale is not None:
        known = zip(scale, (height, width), size, strict=True)
        scales = [1.0, 1.0, *(_float32(factor, n, out) if sheet.fixed else float(factor) for factor, n, out in known)]
        given = ["", sheet.tensor(torch.tensor(scales, dtype=torch.float32), f"{output}/scales")]
    elif sheet.fixed:
        given = ["", "", sheet.ints((batch, channels, *size), f"{output}/sizes")]
    else:
        given = ["", "", sheet.ints(size, f"{output}/sizes")]
        attributes["axes"] = [2, 3]
    sheet.add("Resize", [x, *given], output, **attributes)


def _copy(sheet: Sheet, op: Resize, x: str, scale: Sequence[Fraction], output: str) -> None:
    """Write nearest as a choice of rows and columns."""
    for position, dim in enumerate((2, 3)):
        size, out = sheet.shapes[x][dim], sheet.shapes[output][dim]
        source = sheet.ints(op.samples(size, out, scale[position])[0][0].tolist(), f"{output}/source")
        end = output if position else sheet.unique(f"{output}/rows")
        sheet.shapes[end] = (*sheet.shapes[x][:dim], out, *sheet.shapes[x][dim + 1 :])
        x = sheet.add("Gather", [x, source], end, axis=dim)


def _multiply(sheet: Sheet, op: Resize, x: str, scale: Sequence[Fraction], output: str) -> None:
    """Write linear or cubic as two matrix products, where libraries ignore or lack the convention."""
    matrices = []
    for factor, size, out in zip(scale, sheet.shapes[x][2:], sheet.shapes[output][2:], strict=True):
        index, weight = op.samples(size, out, factor)
        matrices.append(torch.zeros(size, out, dtype=weight.dtype).scatter_add(0, index, weight).to(sheet.dtype))
    rows = sheet.tensor(matrices[0].T, f"{output}/rows")
    columns = sheet.tensor(matrices[1], f"{output}/columns")
    sheet.add("MatMul", [sheet.step("MatMul", [rows, x], output), columns], output)


def _float32(scale: Fraction, size: int, out: int) -> float:
    """Round a scale to single precision, moved where needed so that size times scale still rounds down to `out`."""
    single = np.float32(float(scale))
    while int(np.float32(size) * single) != out:
        towards = np.inf if int(np.float32(size) * single) < out else -np.inf
        single = np.nextafter(single, np.float32(towards))
    return float(single)
