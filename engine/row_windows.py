"""The windows of the row schedule: each brings the rows that follow those of the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilefuse.backends.library import failure
from tilefuse.backends.pixels import is_finite
from tilefuse.backends.precision import exact_fp32
from tilefuse.backends.torch_eager import laid_out, layout
from tilefuse.execute import Execution, Progress, WindowReader, WindowWriter, execute
from tilefuse.graph import Graph
from tilefuse.machine import cpu_threads, release_memory
from tilefuse.row_planner import BACKEND
from tilefuse.streaming import RowStream
from tilefuse.tiling import Grid, Span, Window


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of the image, or of the result, and the window they belong to."""

    window: Window
    values: Tensor


def run_rows(
    graph: Graph,
    grid: Grid,
    reader: WindowReader[Tensor],
    writer: WindowWriter[Tensor],
    device: str,
    progress: Progress | None = None,
    windows: Sequence[int] | None = None,
    *,
    spare_bytes: int = 1 << 30,
) -> Execution:
    """Run the stripes of a grid that `row_grid` made, all or those listed; `execute` says what it raises.

    On a CPU freed memory is given back to the system before there is more of it than `spare_bytes`.
    """
    rows = _RowReader(reader)
    runner = _RowRunner(graph, grid, rows, device, _Freed(spare_bytes) if device == "cpu" else lambda _: None)
    return execute(grid, runner, rows, _RowWriter(writer), progress=progress, windows=windows)


class _RowReader:
    """Reads windows for the stripes, and rows for the stream, which may ask while the next window is read."""

    def __init__(self, reader: WindowReader[Tensor]) -> None:
        self._reader = reader
        self._lock = threading.Lock()

    def read(self, window: Window) -> Rows:
        with self._lock:
            return Rows(window, self._reader.read(window))


class _RowWriter:
    def __init__(self, writer: WindowWriter[Tensor]) -> None:
        self._writer = writer

    def write(self, window: Window, core: Rows) -> None:
        self._writer.write(window, core.values)


class _Freed:
    """Counts freed bytes: rows of ever other sizes leave holes in the C library's heap that nothing fits in.

    EDSR x2 at 1500x600 grew by 450 to 580 MiB of 300 allowed, with holes given back by 240.
    """

    def __init__(self, spare_bytes: int) -> None:
        self._spare = spare_bytes
        self._count = 0

    def __call__(self, count: int) -> None:
        self._count += count
        if self._count > self._spare:
            self._count = 0
            release_memory()


class _RowRunner:
    """Sends windows through one pass over the image; a window that does not follow the last one begins another pass."""

    def __init__(self, graph: Graph, grid: Grid, reader: _RowReader, device: str, freed: Callable[[int], None]) -> None:
        torch.set_num_threads(cpu_threads())
        self._graph = laid_out(graph.to(device=device))
        self._grid = grid
        self._reader = reader
        self._device = device
        self._freed = freed
        self._stream: RowStream | None = None
        self._next = 0

    def run(self, tile: Rows) -> tuple[Rows, bool]:
        y = tile.window.y
        if self._stream is None or self._next != y.core_start:
            self._stream = RowStream(self._graph, *self._grid.padded, first=y.core_start, freed=self._freed)
        self._next = y.core_stop

        def read(start: int, stop: int) -> Tensor:
            inside = tile.values[:, :, max(start, y.start) - y.start : max(stop, y.start) - y.start]
            rows = inside.to(self._device, memory_format=layout(inside))
            if rows.shape[2] == stop - start:
                return rows
            # A pass that begins in the middle reads rows before its window, and the last one the rows to the end.
            parts = [self._read(tile.window, start, min(stop, y.start)), rows, self._read(tile.window, y.stop, stop)]
            return torch.cat([part for part in parts if part is not None], 2)

        try:
            with exact_fp32():
                made = self._stream.advance(read, y.core_stop, self._grid.window[0]).cpu()
        except (RuntimeError, MemoryError) as error:
            raise failure(BACKEND, error) from error
        # Pictures have finite values only: others are refused before they get here.
        return Rows(tile.window, made), is_finite(made)

    def _read(self, window: Window, start: int, stop: int) -> Tensor | None:
        if start >= stop:
            return None
        rows = self._reader.read(replace(window, y=Span(start, stop, 0, 0, 0))).values
        return rows.to(self._device, memory_format=layout(rows))

    def crop(self, result: Rows, rows: slice, columns: slice) -> Rows:
        return replace(result, values=result.values[:, :, rows, columns])
