"""A raster in one file, core after core of a grid: a finished window is stored by one write, wherever it lies."""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import Any

import numpy as np

from tilefuse.errors import ImageError
from tilefuse.storage.base import Array
from tilefuse.storage.flat import FlatRaster, disk_errors, read_into, write_from
from tilefuse.tiling import Grid


class CellRaster:
    """[height, width, bands] samples of the result of `grid`, each core by itself, row after row.

    A flat raster takes a write for each row of each window; these are a few thousand bytes each and cost more than the
    samples do.
    """

    def __init__(self, descriptor: int, grid: Grid, bands: int, dtype: np.dtype[Any]) -> None:
        self.shape = (*grid.output, bands)
        self.dtype = dtype
        self._descriptor = descriptor
        self._tops = [span.core_start for span in grid.rows] + [grid.output[0]]
        self._lefts = [span.core_start for span in grid.columns] + [grid.output[1]]

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return [y1 - y0, x1 - x0, bands]. Raises ImageError where the file ends too early."""
        block = np.empty((y1 - y0, x1 - x0, self.shape[2]), self.dtype)
        for row in range(bisect_right(self._tops, y0) - 1, bisect_right(self._tops, y1 - 1)):
            top, bottom = max(y0, self._tops[row]), min(y1, self._tops[row + 1])
            for column in range(bisect_right(self._lefts, x0) - 1, bisect_right(self._lefts, x1 - 1)):
                left, right = self._lefts[column], self._lefts[column + 1]
                first, last = max(x0, left), min(x1, right)
                cell = np.empty((bottom - top, right - left, self.shape[2]), self.dtype)
                place = self._position(row, column, top - self._tops[row])
                if not read_into(cell.data.cast("B"), self._descriptor, place):
                    raise ImageError(f"it ends in row {top} of {self.shape[0]}; the file is truncated")
                block[top - y0 : bottom - y0, first - x0 : last - x0] = cell[:, first - left : last - left]
        return block

    def write(self, y: int, x: int, block: Array) -> None:
        """Store the core [h, w, bands] that begins at (y, x). Raises CapacityError when the disk is full."""
        row, column = self._tops.index(y), self._lefts.index(x)
        with disk_errors("the unfinished result"):
            view = np.ascontiguousarray(block, self.dtype).data.cast("B")
            write_from(view, self._descriptor, self._position(row, column, 0))

    def finish(self) -> None:
        """Flush to the disk."""
        with disk_errors("the unfinished result"):
            os.fsync(self._descriptor)

    def _position(self, row: int, column: int, skipped: int) -> int:
        """Return where a core's rows begin after `skipped` ones; cores of one row of the grid follow one another."""
        top, left = self._tops[row], self._lefts[column]
        height, width = self._tops[row + 1] - top, self._lefts[column + 1] - left
        pixels = top * self.shape[1] + height * left + skipped * width
        return pixels * self.shape[2] * self.dtype.itemsize


UnfinishedRaster = FlatRaster | CellRaster
