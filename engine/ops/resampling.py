"""Resize: interpolation of height and width, in torch's conventions and in ONNX's."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
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
    floor, its bilinear and bicubic are half_pixel.
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
        return int(height * scale_y), int(width * scale_x)

    def _scales(self, height: int, width: int) -> tuple[Fraction, Fraction]:
        if self.scale is not None:
            return self.scale
        out_h, out_w = self.size or (height, width)
        return Fraction(out_h, height), Fraction(out_w, width)

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        native = self._native()
        if native is not None:
            align = True if native in ("bilinear", "bicubic") and self.coordinates == "align_corners" else None
            if self.size is not None:
                return F.interpolate(x, self.size, mode=native, align_corners=align)
            scale_y, scale_x = self._scales(*x.shape[2:])
            return F.interpolate(x, scale_factor=(float(scale_y), float(scale_x)), mode=native, align_corners=align)
        height, width = x.shape[2:]
        for dim, size, out, scale in zip(
            (2, 3), (height, width), self.output_size(height, width), self._scales(height, width), strict=True
        ):
            x = self._resample(x, dim, size, out, float(scale))
        return x

    def _native(self) -> str | None:
        """Name of torch's own mode when it means the same."""
        if self.mode == "nearest":
            return "nearest" if (self.coordinates, self.rounding) == ("asymmetric", "floor") else None
        if self.exclude_outside or (self.coordinates == "align_corners" and self.scale is not None):
            return None
        if self.mode == "cubic" and self.cubic_a != -0.75:
            return None
        native = "bilinear" if self.mode == "linear" else "bicubic"
        return native if self.coordinates in ("half_pixel", "align_corners") else None

    def _resample(self, x: Tensor, dim: int, size: int, out: int, scale: float) -> Tensor:
        """Interpolate one axis as a weighted sum of shifted gathers."""
        if x.is_meta:
            shape = list(x.shape)
            shape[dim] = out
            return x.new_empty(shape)
        position = self._positions(size, out, scale, x.device)
        if self.mode == "nearest":
            return x.index_select(dim, self._round(position).clamp(0, size - 1).long())
        first, taps = position.floor(), (2 if self.mode == "linear" else 4)
        offset = position - first
        index = torch.stack([first + t - (taps // 2 - 1) for t in range(taps)])
        distance = (torch.arange(taps, device=x.device).view(-1, 1) - (taps // 2 - 1) - offset).abs()
        weight = 1 - distance if self.mode == "linear" else _keys_cubic(distance, self.cubic_a)
        if self.exclude_outside:
            weight = weight * ((index >= 0) & (index < size))
            weight = weight / weight.sum(0)
        index = index.clamp(0, size - 1).long()
        shape = [1] * x.ndim
        shape[dim] = out
        return torch.stack(
            [x.index_select(dim, index[t]) * weight[t].to(x.dtype).view(shape) for t in range(taps)]
        ).sum(0)

    def _positions(self, size: int, out: int, scale: float, device: torch.device) -> Tensor:
        """Input position of every output position, in double precision."""
        i = torch.arange(out, dtype=torch.float64, device=device)
        match self.coordinates:
            case "asymmetric":
                return i / scale
            case "align_corners":
                return i * ((size - 1) / max(size * scale - 1, 1)) if size * scale > 1 else torch.zeros_like(i)
            case "pytorch_half_pixel" if out <= 1:
                return torch.zeros_like(i)
            case "half_pixel_symmetric":
                adjustment = out / (scale * size)
                return size / 2 * (1 - adjustment) + (i + 0.5) / scale - 0.5
            case _:
                return (i + 0.5) / scale - 0.5

    def _round(self, position: Tensor) -> Tensor:
        match self.rounding:
            case "floor":
                return position.floor()
            case "ceil":
                return position.ceil()
            case "round_prefer_floor":
                return (position - 0.5).ceil()
            case "round_prefer_ceil":
                return (position + 0.5).floor()


def _keys_cubic(distance: Tensor, a: float) -> Tensor:
    """Cubic convolution kernel at a distance of 0..2 samples (Keys, 1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)
