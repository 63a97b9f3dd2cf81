"""Resize in ncnn: its Interp layer where that is exact, small convolutions where it is not."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import cast

import numpy as np
import torch

from tilefuse.emitters.ncnn_convolution import multiply, padded
from tilefuse.emitters.ncnn_sheet import Params, Sheet, require
from tilefuse.graph import Node
from tilefuse.ops import Op, Resize


def resize(sheet: Sheet, node: Node, output: str, _: Op | None) -> None:
    op = cast(Resize, node.op)
    source, result = sheet.shapes[node.inputs[0]][2:], sheet.shapes[node.output][2:]
    align = 0
    factor = _whole_factor(op)
    # Positions in steps of a power of two are exact in float32.
    if factor and (factor & (factor - 1) or min(source) < 4 or op.cubic_a != -0.75):
        _polyphase(sheet, op, factor, node.inputs[0], output)
        return
    if op.mode == "nearest":
        _require_same_samples(op, (source[0], source[1]), (result[0], result[1]))
    else:
        align = _require_same_interpolation(op, (source[0], source[1]), (result[0], result[1]))
    kind = {"nearest": 1, "linear": 2, "cubic": 3}[op.mode]
    sheet.add("Interp", node.inputs, output, {0: kind, 3: result[0], 4: result[1], 6: align})


def _whole_factor(op: Resize) -> int:
    """Give the factor of a half-pixel enlargement by the same whole number both ways, or 0."""
    if op.mode == "nearest" or op.scale is None or op.scale[0] != op.scale[1] or op.exclude_outside:
        return 0
    centred = op.coordinates in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel")
    return int(op.scale[0]) if centred and op.scale[0].denominator == 1 and op.scale[0] > 1 else 0


def _polyphase(sheet: Sheet, op: Resize, factor: int, x: str, output: str) -> None:
    """Write a whole enlargement as one small convolution a phase, then a pixel shuffle.

    ncnn's own layer keeps positions in float32, whose error grows with the image's width (1e-4 at 1000 pixels), and
    reads past images of fewer than four pixels.
    """
    reach = 1 if op.mode == "linear" else 2
    impulse = torch.zeros(1, 1, 1, 6 * reach + 1)
    impulse[..., 3 * reach] = 1
    response = replace(op, scale=(Fraction(1), Fraction(factor)), coordinates="half_pixel_symmetric").apply(impulse)
    # Output j * factor + p reads sample j + t with the weight that sample 0 has in output -t * factor + p.
    phases = response.view(-1, factor)[2 * reach : 4 * reach + 1].flip(0)
    kernel = torch.einsum("yp,xq->pqyx", phases, phases).flatten(0, 1).unsqueeze(1)
    channels = sheet.shapes[x][1]
    # For an image's few channels one dense convolution with zeros across channels outruns one group a channel.
    groups = 1 if channels <= 16 else channels
    mixing = torch.eye(channels) if groups == 1 else torch.ones(channels, 1)
    weight = torch.einsum("pzyx,cd->cpdyx", kernel, mixing).flatten(0, 1)
    bordered, mixed = padded(sheet, x, (reach,) * 4, "replicate", 0.0), sheet.fresh()
    params: Params = {0: weight.shape[0], 1: 2 * reach + 1}
    multiply(sheet, "Convolution", bordered, mixed, groups, params, weight, [], None)
    sheet.add("PixelShuffle", (mixed,), output, {0: factor})


def _require_same_samples(op: Resize, source: tuple[int, int], result: tuple[int, int]) -> None:
    """Compare the samples nearest picks with ncnn's, min(int(i * (in / out)), in - 1) in float32, on a ramp."""
    for axis, (size, out) in enumerate(zip(source, result, strict=True)):
        scale = None if op.scale is None else (op.scale[axis], Fraction(1))
        wanted = replace(op, scale=scale, size=None if op.size is None else (out, 1)).apply(
            torch.arange(size, dtype=torch.float32).view(1, 1, size, 1)
        )
        index = np.arange(out, dtype=np.float32) * (np.float32(size) / np.float32(out))
        same = np.array_equal(wanted.flatten().numpy(), np.minimum(index.astype(np.int64), size - 1))
        require(same, f"nearest with {op.coordinates} coordinates and rounding {op.rounding} from {size} to {out}")


def _require_same_interpolation(op: Resize, source: tuple[int, int], result: tuple[int, int]) -> int:
    """Refuse what ncnn's (half-pixel or align-corners) interpolation does otherwise; return its align_corner."""
    require(op.mode == "linear" or (op.cubic_a == -0.75 and not op.exclude_outside), "another cubic kernel")
    align = op.coordinates == "align_corners"
    for axis, (size, out) in enumerate(zip(source, result, strict=True)):
        exact = op.scale is None or size * op.scale[axis] == out
        require(exact, f"a scale that gives no whole size from {size}")
        # Its kernels read this many samples without a bound.
        taps = 2 if op.mode == "linear" else 4
        require(size >= taps, f"{op.mode} interpolation of fewer than {taps} pixels")
        require(out > 1 or not (align or op.coordinates == "pytorch_half_pixel"), "a result of one pixel")
    require(align or op.coordinates != "asymmetric", "asymmetric coordinates")
    return int(align)
