"""Results of a network as samples of a raster larger than memory, each window recorded in the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from tilefuse.backends.pixels import Integers, interleaved
from tilefuse.deflate import crc32
from tilefuse.errors import ImageError
from tilefuse.interruptible import THREAD_NAME
from tilefuse.journal import Journal
from tilefuse.machine import release_memory
from tilefuse.memory import FULL_SCALE
from tilefuse.storage.base import Array, RasterInfo, RasterReader
from tilefuse.storage.cells import UnfinishedRaster
from tilefuse.storage.tiff_encode import CancelledError
from tilefuse.streamed_windows import Planes, bounds
from tilefuse.tiling import Grid, Span, Window

SYNC_BYTES = 64 << 20
SYNC_SECONDS = 5.0


class FinishedWindows:
    """Stores the samples of finished windows and records each in the journal.

    Every 64 MiB or five seconds they are made durable, in a thread of its own: the disk is slow and needs no processor.
    """

    def __init__(
        self, raster: UnfinishedRaster, journal: Journal, grid: Grid, stored: Callable[[int], None] = lambda _: None
    ) -> None:
        """Take windows of `grid`; `stored(index)` is called when the samples of one can be read."""
        self.raster = raster
        self._stored = stored
        self._journal = journal
        self._rows = {span.core_start: number for number, span in enumerate(grid.rows)}
        self._columns = {span.core_start: number for number, span in enumerate(grid.columns)}
        self._unflushed = 0
        self._flushed_at = time.monotonic()
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME)
        self._flushing: Future[None] | None = None

    def store(self, window: Window, block: Array) -> None:
        """Store the samples [h, w, bands] of one core."""
        y, x = window.y, window.x
        block = self.raster.write(y.core_start, x.core_start, block)
        index = self._rows[y.core_start] * len(self._columns) + self._columns[x.core_start]
        self._journal.window(index, crc32(block.data))
        self._stored(index)
        self._unflushed += block.nbytes
        if self._unflushed >= SYNC_BYTES or time.monotonic() - self._flushed_at >= SYNC_SECONDS:
            self._begin_flush()

    def flush(self) -> None:
        """Make everything stored so far durable."""
        self._begin_flush()
        self._wait()

    def close(self) -> None:
        """Wait for the flush that is under way; an error on the way out has a reason of its own."""
        self._flusher.shutdown(wait=True)

    def _begin_flush(self) -> None:
        # One at a time: no more than two rounds of samples ever wait for the disk.
        self._wait()
        self._unflushed = 0
        self._flushed_at = time.monotonic()
        self._flushing = self._flusher.submit(self._flush)

    def _wait(self) -> None:
        if self._flushing is not None:
            self._flushing.result()

    def _flush(self) -> None:
        # Samples first, then the records that vouch for them.
        self.raster.finish()
        self._journal.sync()
        # Several threads take turns at buffers of a window's size; the C library keeps what each of them freed.
        release_memory()


def verified(
    raster: UnfinishedRaster, grid: Grid, recorded: Mapping[int, int], cancelled: Callable[[], bool]
) -> set[int]:
    """Return the windows of those recorded, each with its checksum, whose samples are still what they were."""
    done = set()
    for index, checksum in recorded.items():
        if cancelled():
            raise CancelledError
        if not 0 <= index < len(grid):
            continue
        y, x = grid[index].y, grid[index].x
        try:
            block = raster.read(y.core_start, y.core_stop, x.core_start, x.core_stop)
        except ImageError:
            continue
        if crc32(block.data) == checksum:
            done.add(index)
    return done


class PixelCores:
    """Writes cores that are samples already, integers [1, h, w, C]."""

    def __init__(self, finished: FinishedWindows) -> None:
        self._finished = finished

    def write(self, window: Window, core: Integers) -> None:
        """Store one core."""
        self._finished.store(window, core[0])


class RasterCores:
    """Writes cores of float tensors as samples: scaled to the value range, for integers rounded and clipped."""

    def __init__(self, finished: FinishedWindows, reader: RasterReader, info: RasterInfo, planes: Planes) -> None:
        self._finished = finished
        self._reader = reader
        self._info = info
        self._planes = planes
        self._low, self._span = bounds(info)

    def write(self, window: Window, core: Tensor) -> None:
        """Store one core [N, C, h, w]."""
        y, x = window.y, window.x
        block = np.empty((*core.shape[2:], self._planes.total_bands), self._info.dtype)
        band = 0
        for number in range(len(self._planes.groups)):
            bands = self._planes.output_bands(number)
            values = core[number] if core.shape[1] == bands else core[number].mean(0, keepdim=True)
            block[..., band : band + bands] = self._samples(values)
            band += bands
        if self._planes.alpha:
            self._keep_flat_alpha(block, y, x)
        self._finished.store(window, block)

    def _samples(self, values: Tensor) -> Array:
        scaled = values * self._span
        if self._low:
            scaled += self._low
        if self._info.dtype.kind == "u":
            scaled.round_().clamp_(0, FULL_SCALE[self._info.dtype])
        samples: Array = interleaved(scaled[None].numpy().astype(self._info.dtype))[0]
        return samples

    def _keep_flat_alpha(self, block: Array, y: Span, x: Span) -> None:
        """Give alpha the source's value wherever that is constant over 3 x 3 pixels: networks change constants."""
        out_height, out_width = self._finished.raster.shape[:2]
        rows = np.arange(y.core_start, y.core_stop) * self._info.height // out_height
        columns = np.arange(x.core_start, x.core_stop) * self._info.width // out_width
        y0, y1 = max(0, int(rows[0]) - 1), min(self._info.height, int(rows[-1]) + 2)
        x0, x1 = max(0, int(columns[0]) - 1), min(self._info.width, int(columns[-1]) + 2)
        source = self._reader.read(y0, y1, x0, x1)[..., -1]
        padded = np.pad(source, 1, mode="edge")
        around = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        flat = (around == source[..., None, None]).all(axis=(2, 3))
        near = np.ix_(rows - y0, columns - x0)
        alpha = block[..., -1]
        np.copyto(alpha, source[near], where=flat[near])
        if alpha.dtype.kind == "f":
            np.clip(alpha, 0, 1, out=alpha)
