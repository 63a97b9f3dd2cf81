"""A raster read while it is still being made: a read waits until the rows it asks for are finished."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Collection

from tilefuse.storage.base import Array, Raster
from tilefuse.storage.tiff_encode import CancelledError
from tilefuse.tiling import Grid, Window

_STEP_SECONDS = 0.05


class RowGate:
    """Knows how many rows of a result are finished, counted from the top, and lets threads wait for more.

    `done` are the windows of `grid` that are finished already.
    """

    def __init__(self, grid: Grid, done: Collection[int], cancelled: Callable[[], bool]) -> None:
        self._columns = len(grid.columns)
        self._stops = [span.core_stop for span in grid.rows]
        self._missing = [self._columns] * len(grid.rows)
        for index in done:
            self._missing[index // self._columns] -= 1
        self._cancelled = cancelled
        self._closed = False
        self._changed = threading.Condition()

    @property
    def rows(self) -> int:
        """Rows that are finished, with all rows above them."""
        whole = next((row for row, missing in enumerate(self._missing) if missing), len(self._missing))
        return self._stops[whole - 1] if whole else 0

    @property
    def closed(self) -> bool:
        """Tell whether no more rows are going to be finished."""
        return self._closed or self._cancelled()

    def finished(self, index: int) -> None:
        """Note that a window is finished; its samples can be read from now on."""
        with self._changed:
            self._missing[index // self._columns] -= 1
            self._changed.notify_all()

    def stored(self, window: Window) -> None:
        """Note that a window is finished."""
        self.finished(bisect_right(self._stops, window.y.core_start) * self._columns)

    def close(self) -> None:
        """Wake who waits: the job has failed, and no more rows will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, rows: int) -> None:
        """Wait until the first `rows` rows are finished. Raises CancelledError when that won't be."""
        with self._changed:
            while self.rows < rows:
                if self.closed:
                    raise CancelledError
                self._changed.wait(_STEP_SECONDS)
        if self.closed:
            raise CancelledError


class GatedRaster:
    """A raster whose finished rows can be read; `on_row` is told up to which row it has been, as that grows."""

    def __init__(self, raster: Raster, gate: RowGate, on_row: Callable[[int], None]) -> None:
        self.shape = raster.shape
        self._raster = raster
        self._gate = gate
        self._on_row = on_row
        self._top = 0

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return [y1 - y0, x1 - x0, bands]. Raises CancelledError when the rows won't be finished."""
        self._gate.wait(y1)
        if y0 > self._top:
            self._top = y0
            self._on_row(y0)
        return self._raster.read(y0, y1, x0, x1)
