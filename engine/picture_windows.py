"""The windows of a picture held in memory: integers where the backend converts them itself, else float tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tilefuse.backends.base import Precision
from tilefuse.backends.pixels import Integers
from tilefuse.batching import Batch
from tilefuse.execute import Execution, Progress, Runner, WindowWriter, execute
from tilefuse.jobs import Job
from tilefuse.memory import ArrayReader, ArrayWriter, PixelKeeper, PixelReader, Pixels, PixelWriter
from tilefuse.planner import Plan, Serving
from tilefuse.row_windows import run_rows
from tilefuse.runners import FloatRunner, PixelRunner
from tilefuse.shrinking import ShrinkingRunner
from tilefuse.tiling import Grid, Window

if TYPE_CHECKING:
    from tilefuse.api import Engine

Stored = Callable[[Window], None]


def run_jobs(
    engine: Engine,
    jobs: list[Job],
    plan: Plan,
    grid: Grid,
    serving: Serving,
    progress: Progress | None,
    stored: Stored = lambda _: None,
) -> tuple[list[Job], Execution]:
    """Run every window of a picture's jobs as planned and return the jobs with their results.

    `stored(window)` is called when the core of a window is in its place; `execute` says what is raised.
    """
    total = len(grid) * len(jobs)
    done, runs = list[Job](), list[Execution]()
    for position, job in enumerate(jobs):
        step = progress and _offset(progress, position * len(grid), total)
        result, run = _run_windows(engine, job, plan, grid, serving, step, stored)
        done.append(replace(job, result=result))
        runs.append(run)
    execution = Execution(
        total,
        sum(run.seconds for run in runs),
        sum(run.compute_seconds for run in runs),
        sum(run.rerun_fp32 for run in runs),
        tuple(dict.fromkeys(note for run in runs for note in run.notes)),
    )
    return done, execution


def _offset(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def _run_windows(
    engine: Engine, job: Job, plan: Plan, grid: Grid, serving: Serving, progress: Progress | None, stored: Stored
) -> tuple[Pixels, Execution]:
    if plan.rows and engine.model.graph is not None:
        rows_in = ArrayReader(job.source, engine.model.image_channels[0])
        rows_out = _Telling(ArrayWriter(job.result), stored)
        # The estimate allows as much again as the network's own: a quarter of that is left to holes between rows.
        spare = max(plan.memory_bytes - plan.peak_bytes, plan.peak_bytes // 8)
        graph, device = engine.model.graph, plan.device
        return job.result, run_rows(graph, grid, rows_in, rows_out, device, progress, spare_bytes=spare)
    kept = PixelKeeper()
    if _takes_pixels(engine, job):
        reader: Any = PixelReader(cast(Integers, job.source))
        # What a backend made of the whole image is the result: to copy it takes longer than many a layer.
        writer: Any = kept if len(grid) == 1 else PixelWriter(cast(Integers, job.result))
    else:
        reader, writer = ArrayReader(job.source, engine.model.image_channels[0]), ArrayWriter(job.result)

    def shrinking(precision: Precision) -> ShrinkingRunner[Any]:
        return ShrinkingRunner(
            lambda window: runner_of(engine, job, window, serving, precision),
            grid.window,
            engine.footprint,
            engine.options.request.halo_px,
            engine.forget,
            serving.device,
        )

    runner = shrinking(serving.precision)
    batch: Batch[Any] | None = None
    if plan.batch > 1:
        batch = Batch(
            plan.batch,
            lambda: runner_of(engine, job, grid.window, serving, serving.precision, plan.batch),
            lambda: engine.forget(grid.window),
        )
    done = execute(
        grid,
        runner,
        reader,
        _Telling(writer, stored),
        exact=None if serving.precision == "fp32" else lambda: shrinking("fp32"),
        progress=progress,
        workers=plan.workers,
        batch=batch,
    )
    result = cast(Pixels, np.ascontiguousarray(kept.cores[grid[0]])) if kept.cores else job.result
    return result, replace(done, notes=(*(batch.notes if batch is not None else ()), *runner.notes))


class _Telling:
    """A writer that tells which windows are written."""

    def __init__(self, writer: WindowWriter[Any], stored: Stored) -> None:
        self._writer = writer
        self._stored = stored

    def write(self, window: Window, core: Any) -> None:
        self._writer.write(window, core)
        self._stored(window)


def runner_of(
    engine: Engine, job: Job, window: tuple[int, int], serving: Serving, precision: Precision, batch: int = 1
) -> Runner[Any]:
    """Compile for `batch` windows of a job in one call, or return what was compiled.

    Raises:
        BackendError: the backend can't compile it.
    """
    images = batch * job.source.shape[0]
    if _takes_pixels(engine, job):
        return PixelRunner(engine.pixel_session(serving, images, window, job.source.dtype, precision))
    return FloatRunner(engine.session(serving, images, window, precision))


def _takes_pixels(engine: Engine, job: Job) -> bool:
    """Tell whether the job's integers are the network's own channels, so that nothing but a type is converted."""
    channels = job.source.shape[3], job.result.shape[3]
    return job.source.dtype.kind == "u" and channels == engine.model.image_channels
