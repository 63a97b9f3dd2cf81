"""A raster in one file, core after core of a grid: a finished window is stored by one write, wherever it lies."""

from __future__ import annotations

import os
import threading
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
    samples do. Up to `kept_bytes` of cores stay in memory too until they are passed: to read them back from the file
    takes longer than to copy them.
    """

    def __init__(self, descriptor: int, grid: Grid, bands: int, dtype: np.dtype[Any], kept_bytes: int = 0) -> None:
        self.shape = (*grid.output, bands)
        self.dtype = dtype
        self._descriptor = descriptor
        self._tops = [span.core_start for span in grid.rows] + [grid.output[0]]
        self._lefts = [span.core_start for span in grid.columns] + [grid.output[1]]
        # One piece of memory in places of a core each: to allocate and free them one by one costs as much as to read.
        largest = bands * int(np.diff(self._tops).max()) * int(np.diff(self._lefts).max())
        self._places: Array = np.empty((min(kept_bytes // (largest * dtype.itemsize), len(grid)), largest), dtype)
        self._free = list(range(len(self._places)))
        self._kept: dict[tuple[int, int], tuple[int, Array]] = {}
        self._keeping = threading.Lock()

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return [y1 - y0, x1 - x0, bands]. Raises ImageError where the file ends too early."""
        block = np.empty((y1 - y0, x1 - x0, self.shape[2]), self.dtype)
        for row in range(bisect_right(self._tops, y0) - 1, bisect_right(self._tops, y1 - 1)):
            top, bottom = max(y0, self._tops[row]), min(y1, self._tops[row + 1])
            for column in range(bisect_right(self._lefts, x0) - 1, bisect_right(self._lefts, x1 - 1)):
                left = self._lefts[column]
                first, last = max(x0, left), min(x1, self._lefts[column + 1])
                skipped = top - self._tops[row]
                kept = self._kept.get((row, column))
                if kept is None:
                    cell = self._stored(row, column, skipped, bottom - top)
                else:
                    cell = kept[1][skipped : skipped + bottom - top]
                block[top - y0 : bottom - y0, first - x0 : last - x0] = cell[:, first - left : last - left]
        return block

    def write(self, y: int, x: int, block: Array) -> Array:
        """Store the core [h, w, bands] that begins at (y, x) and return its samples in one piece.

        Raises CapacityError when the disk is full.
        """
        row, column = self._tops.index(y), self._lefts.index(x)
        with self._keeping:
            place = self._free.pop() if self._free else None
        if place is None:
            whole: Array = np.ascontiguousarray(block, self.dtype)
        else:
            whole = self._places[place, : block.size].reshape(block.shape)
            whole[...] = block
        with disk_errors("the unfinished result"):
            write_from(whole.data.cast("B"), self._descriptor, self._position(row, column, 0))
        if place is not None:
            with self._keeping:
                self._kept[row, column] = place, whole
        return whole

    def passed(self, rows: int) -> None:
        """Keep no core that ends within the first `rows` rows: its reader will not ask for it again."""
        with self._keeping:
            for row, column in [cell for cell in self._kept if self._tops[cell[0] + 1] <= rows]:
                self._free.append(self._kept.pop((row, column))[0])

    def finish(self) -> None:
        """Flush to the disk."""
        with disk_errors("the unfinished result"):
            os.fsync(self._descriptor)

    def _stored(self, row: int, column: int, skipped: int, count: int) -> Array:
        """Read `count` rows of a core from the file."""
        cell = np.empty((count, self._lefts[column + 1] - self._lefts[column], self.shape[2]), self.dtype)
        if not read_into(cell.data.cast("B"), self._descriptor, self._position(row, column, skipped)):
            top = self._tops[row] + skipped
            raise ImageError(f"it ends in row {top} of {self.shape[0]}; the file is truncated")
        return cell

    def _position(self, row: int, column: int, skipped: int) -> int:
        """Return where a core's rows begin after `skipped` ones; cores of one row of the grid follow one another."""
        top, left = self._tops[row], self._lefts[column]
        height, width = self._tops[row + 1] - top, self._lefts[column + 1] - left
        pixels = top * self.shape[1] + height * left + skipped * width
        return pixels * self.shape[2] * self.dtype.itemsize


UnfinishedRaster = FlatRaster | CellRaster
