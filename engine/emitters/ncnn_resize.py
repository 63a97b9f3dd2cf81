"""Resize in ncnn: its Interp layer, where its conventions are the op's."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import cast

import numpy as np
import torch

from tilefuse.emitters.ncnn_convolution import padded
from tilefuse.emitters.ncnn_sheet import Sheet, require
from tilefuse.graph import Node, Shape
from tilefuse.ops import Op, Resize

# Interp reads this many samples without looking where the image ends.
_TAPS = {"linear": 2, "cubic": 4}


def resize(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op, x = cast(Resize, node.op), node.inputs[0]
    source, result = (sheet.shapes[name][2:] for name in (x, node.output))
    if op.mode == "nearest":
        _require_same_samples(op, source, result)
        sheet.add("Interp", (x,), output, {0: 1, 3: result[0], 4: result[1]})
        return
    align = _require_same_interpolation(op, source, result)
    kind = 2 if op.mode == "linear" else 3
    taps = _TAPS[op.mode]
    if min(source) >= taps:
        sheet.add("Interp", (x,), output, {0: kind, 3: result[0], 4: result[1], 6: align})
        return
    # A tiny image is enlarged with a border of copies, as interpolation itself continues it, and cropped.
    factors = {Fraction(out, size) for size, out in zip(source, result, strict=True)}
    factor = factors.pop()
    require(
        not align and not factors and factor.denominator == 1, f"{op.mode} interpolation of fewer than {taps} pixels"
    )
    border, scale = taps // 2, int(factor)
    height, width = ((size + 2 * border) * scale for size in source)
    padded_x, enlarged = padded(sheet, x, (border,) * 4, "replicate", 0.0), sheet.fresh()
    sheet.add("Interp", (padded_x,), enlarged, {0: kind, 3: height, 4: width})
    cut = border * scale
    sheet.add("Crop", (enlarged,), output, {9: [cut, cut], 10: [height - cut, width - cut], 11: [1, 2]})


def _require_same_samples(op: Resize, source: Shape, result: Shape) -> None:
    """Compare the samples nearest picks with ncnn's, min(int(i * (in / out)), in - 1) in float32, on a ramp."""
    for axis, (size, out) in enumerate(zip(source, result, strict=True)):
        scale = None if op.scale is None else (op.scale[axis], Fraction(1))
        wanted = replace(op, scale=scale, size=None if op.size is None else (out, 1)).apply(
            torch.arange(size, dtype=torch.float32).view(1, 1, size, 1)
        )
        index = np.arange(out, dtype=np.float32) * (np.float32(size) / np.float32(out))
        same = np.array_equal(wanted.flatten().numpy(), np.minimum(index.astype(np.int64), size - 1))
        require(same, f"nearest with {op.coordinates} coordinates and rounding {op.rounding} from {size} to {out}")


def _require_same_interpolation(op: Resize, source: Shape, result: Shape) -> int:
    """Refuse what ncnn's (half-pixel or align-corners) interpolation does otherwise; return its align_corner."""
    require(op.mode == "linear" or (op.cubic_a == -0.75 and not op.exclude_outside), "another cubic kernel")
    align = op.coordinates == "align_corners"
    for axis, (size, out) in enumerate(zip(source, result, strict=True)):
        exact = op.scale is None or size * op.scale[axis] == out
        require(exact, f"a scale that gives no whole size from {size}")
        require(out > 1 or not (align or op.coordinates == "pytorch_half_pixel"), "a result of one pixel")
    require(align or op.coordinates != "asymmetric", "asymmetric coordinates")
    return int(align)
