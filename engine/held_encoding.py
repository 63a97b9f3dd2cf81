"""The result of a job that is held in memory is encoded while it is computed; rows that are encoded give their memory
back.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tilefuse.execute import Execution, Progress
from tilefuse.images import Picture
from tilefuse.images.rows import ALL_ROWS, Rows
from tilefuse.jobs import Job, assemble
from tilefuse.masks import Mask
from tilefuse.memory import Pixels
from tilefuse.picture_windows import run_jobs
from tilefuse.planner import Plan, Serving
from tilefuse.storage.gate import RowGate
from tilefuse.streamed_encoding import beside
from tilefuse.tiling import Grid

if TYPE_CHECKING:
    from tilefuse.api import Engine

Encode = Callable[[Picture, Rows], None]

# Pages of memory that a system hands out, and takes back, at once.
_STEP_BYTES = 2 << 20


def run_and_encode(
    engine: Engine,
    picture: Picture,
    jobs: list[Job],
    settled: tuple[Plan, Grid, Serving],
    holes: Mask | None,
    progress: Progress | None,
    encode: Encode,
) -> Execution:
    """Run a picture's jobs and encode the result, beside them where its rows are final once their windows are.

    That is not so of a result with alpha, of one put together from images of one channel each, and of floats, which
    are checked as a whole.
    """
    grid = settled[1]
    grows = len(jobs) == 1 and jobs[0].result.shape[0] == 1 and jobs[0].result.dtype.kind == "u" and holes is None
    if not grows or len(grid.rows) == 1:
        jobs, execution = run_jobs(engine, jobs, *settled, progress)
        encode(assemble(picture, jobs, engine.scale, holes), ALL_ROWS)
        return execution
    gate = RowGate(grid, (), lambda: False)
    result = PassingResult(jobs[0].result.shape, jobs[0].result.dtype, gate)
    jobs = [replace(jobs[0], result=result.pixels)]
    whole = assemble(picture, jobs, engine.scale)

    def advanced(done: int, total: int) -> None:
        check()
        if progress is not None:
            progress(done, total)

    with beside(lambda: encode(whole, result), gate) as check:
        return run_jobs(engine, jobs, *settled, advanced, gate.stored)[1]


class PassingResult:
    """Samples [N, H, W, C] that are filled from the top and lost once they are passed."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], gate: RowGate) -> None:
        size = int(np.prod(shape)) * dtype.itemsize
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.pixels: Pixels = np.frombuffer(self._memory, dtype).reshape(shape)
        self._row_bytes = size // shape[1]
        self._gate = gate
        self._lost = 0

    def wait(self, rows: int) -> None:
        """Return once the first `rows` rows are finished."""
        self._gate.wait(rows)

    def passed(self, rows: int) -> None:
        """Give the memory of the first `rows` rows back, as far as that goes."""
        stop = rows * self._row_bytes // _STEP_BYTES * _STEP_BYTES
        if stop > self._lost:
            self._memory.madvise(mmap.MADV_DONTNEED, self._lost, stop - self._lost)
            self._lost = stop
