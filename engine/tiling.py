"""Windows, cores and crops: pure integers.

A window never leaves the image: at a border it is shifted inside, so the network's own padding acts at real borders
only, and every window of an image has one shape. Neighbouring cores meet where both windows are right, so each output
pixel is written exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from tilefuse.footprint import Axis, Footprint


@dataclass(frozen=True)
class Span:
    """A window along one axis: input positions start..stop, and the output positions it is trusted for.

    `crop` is where the core begins within the window's own output.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int
    crop: int


@dataclass(frozen=True)
class Window:
    """What is read from the image (y, x of the input) and where its core lands in the result."""

    y: Span
    x: Span


@dataclass(frozen=True)
class Grid:
    """Every window of an image, all of `window` (height, width) input pixels; the image is padded to `padded` first."""

    height: int
    width: int
    padded: tuple[int, int]
    window: tuple[int, int]
    output: tuple[int, int]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, column = divmod(index, len(self.columns))
        return Window(self.rows[row], self.columns[column])


def grid(height: int, width: int, tile: int, footprint: Footprint, halo_px: int | None = None) -> Grid:
    """Cut an image of height x width input pixels into windows of `tile` pixels an edge plus halo.

    A core at a border is larger by the halo it does not need there. `tile` 0 takes the whole image as one window.
    `halo_px` replaces the exact halo on every side.
    """
    padded = tuple(axis.padded(size, footprint.minimum_px) for axis, size in _axes(footprint, height, width))
    spans = tuple(
        split_axis(size, tile, axis, footprint.minimum_px, halo_px) for axis, size in _axes(footprint, height, width)
    )
    window = (spans[0][0].stop - spans[0][0].start, spans[1][0].stop - spans[1][0].start)
    output = footprint.output_size(height, width)
    return Grid(height, width, (padded[0], padded[1]), window, output, spans[0], spans[1])


def split_axis(size: int, tile: int, axis: Axis, minimum: int = 1, halo_px: int | None = None) -> tuple[Span, ...]:
    """Cut `size` input pixels along one axis into windows of one length."""
    step = axis.alignment
    padded, output = axis.padded(size, minimum), axis.output_size(size)
    before, after = (
        (ceil(h / step) * step for h in (axis.before, axis.after))
        if halo_px is None
        else [ceil(halo_px / step) * step] * 2
    )
    length = max(axis.padded(tile, 1) + before + after, axis.padded(minimum, 1))
    if tile <= 0 or length >= padded:
        return (Span(0, padded, 0, output, 0),)
    advance = length - before - after
    starts = [min(k * advance, padded - length) for k in range(ceil((padded - length) / advance) + 1)]
    # Output position where each core begins: the first that the window behind the boundary knows in full.
    bounds = [0, *(int((start + before) * axis.scale) for start in starts[1:]), output]
    return tuple(
        Span(start, start + length, low, high, low - int(start * axis.scale))
        for start, low, high in zip(starts, bounds, bounds[1:], strict=False)
        if low < high
    )


def _axes(footprint: Footprint, height: int, width: int) -> tuple[tuple[Axis, int], tuple[Axis, int]]:
    return (footprint.y, height), (footprint.x, width)
