"""Resize: interpolation of height and width, in torch's conventions and in ONNX's."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tilefuse.ops.base import Op, Pair

ResizeMode = Literal["nearest", "linear", "cubic"]
Coordinates = Literal["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners"]
NearestRounding = Literal["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]


@dataclass(frozen=True)
class Resize(Op):
    """Interpolate [N, C, H, W] by `scale` (height, width) or to `size`; exactly one of the two is given.

    The conventions are ONNX's (operator Resize): `coordinates` maps an output position to an input position, `rounding`
    picks nearest's sample, `cubic_a` is the cubic kernel's coefficient (Keys 1981). torch's nearest is asymmetric +
    floor, its bilinear and bicubic are half_pixel. Two conventions are torch's, where ONNX and ONNX Runtime disagree:
    the output size is the product of size and scale in double precision, rounded down, and align_corners puts the last
    pixel of that size onto the input's last.
    """

    name: ClassVar[str] = "resize"
    mode: ResizeMode
    scale: tuple[Fraction, Fraction] | None = None
    size: Pair | None = None
    coordinates: Coordinates = "half_pixel"
    rounding: NearestRounding = "floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False

    def output_size(self, height: int, width: int) -> Pair:
        """Size of the result for an input of height x width."""
        if self.size is not None:
            return self.size
        scale_y, scale_x = self._scales(height, width)
        return int(height * float(scale_y)), int(width * float(scale_x))

    def _scales(self, height: int, width: int) -> tuple[Fraction, Fraction]:
        if self.scale is not None:
            return self.scale
        out_h, out_w = self.size or (height, width)
        return Fraction(out_h, height), Fraction(out_w, width)

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        sizes = x.shape[2:]
        made, scales = self.output_size(*sizes), self._scales(*sizes)
        native = self._native()
        # Where a scale makes no new row, torch copies on a CPU and interpolates on a GPU; the definition interpolates.
        idle = any(size == out and scale != 1 for size, out, scale in zip(sizes, made, scales, strict=True))
        if native is not None and not idle:
            align = True if native in ("bilinear", "bicubic") and self.coordinates == "align_corners" else None
            if self.size is not None:
                return F.interpolate(x, self.size, mode=native, align_corners=align)
            factors = tuple(float(scale) for scale in scales)
            return F.interpolate(x, scale_factor=factors, mode=native, align_corners=align)
        for dim, size, out, scale in zip((2, 3), sizes, made, scales, strict=True):
            x = self._resample(x, dim, size, out, scale)
        return x

    def samples(self, size: int, out: int, scale: Fraction) -> tuple[Tensor, Tensor]:
        """Input rows (or columns) each of `out` output rows reads, and their weights: int64 and float64 [taps, out].

        Positions are exact fractions, so nearest never picks the neighbour by rounding.
        """
        position, denominator = self._positions(size, out, scale)
        if self.mode == "nearest":
            return self._round(position, denominator).clamp(0, size - 1).unsqueeze(0), torch.ones(1, out).double()
        first, taps = position // denominator, (2 if self.mode == "linear" else 4)
        offset = (position - first * denominator).double() / denominator
        steps = torch.arange(taps).view(-1, 1) - (taps // 2 - 1)
        index, distance = first + steps, (steps - offset).abs()
        weight = 1 - distance if self.mode == "linear" else keys_cubic(distance, self.cubic_a)
        if self.exclude_outside:
            weight = weight * ((index >= 0) & (index < size))
            weight = weight / weight.sum(0)
        return index.clamp(0, size - 1), weight

    def survives_rounding(self, scale: Fraction) -> bool:
        """Whether nearest picks the same samples at any size if positions are computed in single precision.

        It does not where a position falls on the border of two pixels and the scale is no float32: libraries differ.
        """
        if self.mode != "nearest" or self.coordinates == "align_corners":
            return True
        if self.coordinates == "half_pixel_symmetric" and scale.denominator != 1:
            return False
        if Fraction(torch.tensor(float(scale), dtype=torch.float32).item()) == scale:
            return True
        slope = 1 / scale
        start = Fraction(0) if self.coordinates == "asymmetric" else (slope - 1) / 2
        border = Fraction(0) if self.rounding in ("floor", "ceil") else Fraction(1, 2)
        first = 1 if self.coordinates == "asymmetric" else 0
        return all((start + slope * i - border).denominator != 1 for i in range(first, slope.denominator + 1))

    def _native(self) -> str | None:
        """Name of torch's own mode when it means the same."""
        if self.mode == "nearest":
            return "nearest" if (self.coordinates, self.rounding) == ("asymmetric", "floor") else None
        if self.mode == "cubic" and (self.exclude_outside or self.cubic_a != -0.75):
            return None
        native = "bilinear" if self.mode == "linear" else "bicubic"
        return native if self.coordinates in ("half_pixel", "align_corners") else None

    def _resample(self, x: Tensor, dim: int, size: int, out: int, scale: Fraction) -> Tensor:
        """Interpolate one axis as a weighted sum of gathers."""
        shape = list(x.shape)
        shape[dim] = out
        if x.is_meta:
            return x.new_empty(shape)
        index, weight = self.samples(size, out, scale)
        index, weight = index.to(x.device), weight.to(x.device, x.dtype)
        if self.mode == "nearest":
            return x.index_select(dim, index[0])
        shape = [1] * x.ndim
        shape[dim] = out
        return torch.stack([x.index_select(dim, i) * w.view(shape) for i, w in zip(index, weight, strict=True)]).sum(0)

    def _round(self, position: Tensor, denominator: int) -> Tensor:
        match self.rounding:
            case "floor":
                return position // denominator
            case "ceil":
                return -(-position // denominator)
            case "round_prefer_floor":
                return -((denominator - 2 * position) // (2 * denominator))
            case "round_prefer_ceil":
                return (2 * position + denominator) // (2 * denominator)

    def _positions(self, size: int, out: int, scale: Fraction) -> tuple[Tensor, int]:
        """Input position of every output position, as integers over one denominator."""
        # A scale that came from a float may have a denominator whose products overflow 64 bits.
        slope, start = 1 / scale.limit_denominator(2**20), Fraction(0)
        match self.coordinates:
            case "align_corners":
                slope = Fraction(size - 1, out - 1) if out > 1 else Fraction(0)
            case "pytorch_half_pixel" if out <= 1:
                slope = Fraction(0)
            case "half_pixel" | "pytorch_half_pixel":
                start = (slope - 1) / 2
            case "half_pixel_symmetric":
                start = (slope - 1) / 2 + (size - out * slope) / 2
        denominator = lcm(slope.denominator, start.denominator)
        return torch.arange(out) * int(slope * denominator) + int(start * denominator), denominator


def keys_cubic(distance: Tensor, a: float) -> Tensor:
    """Cubic convolution kernel at a distance of 0..2 samples (Keys, 1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)
