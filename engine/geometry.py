"""How one op moves positions along one axis: how long its output is, and which input positions an output reads.

All arithmetic is on integers and fractions, so what follows from it (halo, alignment, scale) is exact. Positions may
lie outside the image: what an op reads there is its own padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Protocol

from tilefuse.ops import Conv2d, ConvTranspose2d, Op, Pad, PixelShuffle, PixelUnshuffle, Pool2d, Resize

Interval = tuple[int, int]  # first and last position, both included


class AxisMap(Protocol):
    """Geometry of an op along one axis."""

    @property
    def scale(self) -> Fraction:
        """Output positions per input position."""
        ...

    def constant(self, offset: int) -> int:
        """Offset c' of the output size s·n + c' when the input has size n + c and s·n is whole."""
        ...

    def reads(self, first: int, last: int) -> Interval:
        """Input positions that the output positions first..last read."""
        ...


@dataclass(frozen=True)
class Same:
    """A pointwise op."""

    scale: Fraction = Fraction(1)

    def constant(self, offset: int) -> int:
        return offset

    def reads(self, first: int, last: int) -> Interval:
        return first, last


@dataclass(frozen=True)
class Sliding:
    """A window of `extent` positions moved in steps of `stride` over padded input: convolution and pooling."""

    extent: int
    stride: int = 1
    before: int = 0
    after: int = 0
    ceil_mode: bool = False

    @property
    def scale(self) -> Fraction:
        return Fraction(1, self.stride)

    def constant(self, offset: int) -> int:
        steps = Fraction(offset + self.before + self.after - self.extent, self.stride)
        return (ceil(steps) if self.ceil_mode else floor(steps)) + 1

    def reads(self, first: int, last: int) -> Interval:
        return first * self.stride - self.before, last * self.stride - self.before + self.extent - 1


@dataclass(frozen=True)
class Transposed:
    """Each input position adds `extent` outputs, `stride` apart: transposed convolution."""

    extent: int
    stride: int
    before: int
    after: int

    @property
    def scale(self) -> Fraction:
        return Fraction(self.stride)

    def constant(self, offset: int) -> int:
        return (offset - 1) * self.stride + self.extent - self.before - self.after

    def reads(self, first: int, last: int) -> Interval:
        return (
            ceil(Fraction(first + self.before - self.extent + 1, self.stride)),
            floor(Fraction(last + self.before, self.stride)),
        )


@dataclass(frozen=True)
class Grow:
    """Each input position becomes `factor` outputs: pixel shuffle."""

    factor: int

    @property
    def scale(self) -> Fraction:
        return Fraction(self.factor)

    def constant(self, offset: int) -> int:
        return offset * self.factor

    def reads(self, first: int, last: int) -> Interval:
        return first // self.factor, last // self.factor


@dataclass(frozen=True)
class Interpolate:
    """Interpolation by a fixed factor."""

    op: Resize
    scale: Fraction

    def constant(self, offset: int) -> int:
        return floor(offset * self.scale)

    def reads(self, first: int, last: int) -> Interval:
        # One period of phases from each end holds the extremes.
        period = self.scale.numerator
        ends = {*range(first, min(last, first + period) + 1), *range(max(first, last - period), last + 1)}
        taps = [tap for position in ends for tap in self._taps(position)]
        return min(taps), max(taps)

    def _taps(self, position: int) -> tuple[int, int]:
        asymmetric = self.op.coordinates == "asymmetric"
        source = position / self.scale if asymmetric else (position + Fraction(1, 2)) / self.scale - Fraction(1, 2)
        if self.op.mode == "nearest":
            half = Fraction(1, 2)
            sample = {
                "floor": floor(source),
                "ceil": ceil(source),
                "round_prefer_floor": ceil(source - half),
                "round_prefer_ceil": floor(source + half),
            }[self.op.rounding]
            return sample, sample
        low, high = floor(source), ceil(source)
        # On a sample exactly, every other tap has weight zero.
        if self.op.mode == "linear" or low == high:
            return low, high
        return low - 1, high + 1


def axis_maps(op: Op, kernel: tuple[int, int]) -> tuple[AxisMap, AxisMap]:
    """Give an op's geometry along height and width; `kernel` is the weight's (height, width) where it has one."""
    match op:
        case Conv2d():
            return _per_axis(
                lambda a: Sliding(op.dilation[a] * (kernel[a] - 1) + 1, op.stride[a], op.padding[a], op.padding[a + 2])
            )
        case Pool2d():
            return _per_axis(
                lambda a: Sliding(
                    op.dilation[a] * (op.kernel[a] - 1) + 1,
                    op.stride[a],
                    op.padding[a],
                    op.padding[a + 2],
                    op.ceil_mode,
                )
            )
        case ConvTranspose2d():
            return _per_axis(
                lambda a: Transposed(
                    op.dilation[a] * (kernel[a] - 1) + 1,
                    op.stride[a],
                    op.padding[a],
                    op.padding[a + 2] - op.output_padding[a],
                )
            )
        case PixelShuffle():
            return Grow(op.factor), Grow(op.factor)
        case PixelUnshuffle():
            return Sliding(op.factor, op.factor), Sliding(op.factor, op.factor)
        case Pad():
            return _per_axis(lambda a: Sliding(1, 1, op.padding[a], op.padding[a + 2]))
        case Resize(scale=(scale_y, scale_x)):
            return Interpolate(op, scale_y), Interpolate(op, scale_x)
    return Same(), Same()


def _per_axis(make: Callable[[int], AxisMap]) -> tuple[AxisMap, AxisMap]:
    return make(0), make(1)
