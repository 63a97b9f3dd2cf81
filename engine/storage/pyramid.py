"""Reduced copies of a finished raster for viewers: each level half the one before, in temporary files without names."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from tilefuse.storage.base import Array, Raster, RasterInfo
from tilefuse.storage.flat import FlatRaster, disk_errors

# The smallest level fits one tile.
SMALLEST_PX = 256
_BAND_BYTES = 8 << 20


def level_count(height: int, width: int) -> int:
    """Count the reduced levels of a raster."""
    count = 0
    while max(height, width) > SMALLEST_PX:
        height, width, count = -(-height // 2), -(-width // 2), count + 1
    return count


@contextmanager
def levels(
    raster: Raster, info: RasterInfo, folder: Path, check: Callable[[], None]
) -> Iterator[Iterator[tuple[Raster, RasterInfo]]]:
    """Give the levels from large to small. Their files in `folder` have no names, so that a kill leaves nothing behind.

    `check` is called now and then and may raise. Together they take a third of the raster's bytes of disk.

    Raises:
        CapacityError: the disk is full.
    """
    with tempfile.TemporaryFile(dir=folder) as even, tempfile.TemporaryFile(dir=folder) as odd:

        def reduce() -> Iterator[tuple[Raster, RasterInfo]]:
            above: Raster = raster
            described = info
            for number in range(level_count(info.height, info.width)):
                described = replace(described, height=-(-described.height // 2), width=-(-described.width // 2))
                shape = (described.height, described.width, info.bands)
                below = FlatRaster((even, odd)[number % 2].fileno(), 0, shape, info.dtype)
                _halve(above, below, described, check)
                yield below, described
                above = below

        with disk_errors("the reduced levels"):
            yield reduce()


def _halve(above: Raster, below: FlatRaster, info: RasterInfo, check: Callable[[], None]) -> None:
    height, width, bands = above.shape
    rows = max(1, _BAND_BYTES // (2 * width * bands * info.dtype.itemsize))
    for top in range(0, info.height, rows):
        check()
        bottom = min(top + rows, info.height)
        below.write(top, 0, halved(above.read(2 * top, min(2 * bottom, height), 0, width), info.alpha != "none"))


def halved(block: Array, has_alpha: bool) -> Array:
    """Return [h, w, bands] at half the size: means of 2 x 2, the last row or column of an odd size repeated.

    Where the last band is alpha, colours count as much as they are opaque, or the colour of transparent pixels would
    show at edges.
    """
    odd = (block.shape[0] % 2, block.shape[1] % 2)
    even = np.pad(block, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge") if any(odd) else block
    corners = [even[y::2, x::2].astype(np.float32) for y in (0, 1) for x in (0, 1)]
    mean = sum(corners[1:], corners[0]) / 4
    if has_alpha:
        alpha = mean[..., -1:]
        weighted = sum(corner[..., :-1] * corner[..., -1:] for corner in corners) / 4
        np.divide(weighted, alpha, out=mean[..., :-1], where=alpha > 0)
    rounded: Array = (np.rint(mean) if block.dtype.kind == "u" else mean).astype(block.dtype)
    return rounded
