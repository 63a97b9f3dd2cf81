"""The windows of a picture held in memory: integers where the backend converts them itself, else float tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from tilefuse.backends.base import Precision
from tilefuse.backends.pixels import Integers
from tilefuse.batching import Batch
from tilefuse.execute import Execution, Progress, Runner, execute
from tilefuse.jobs import Job
from tilefuse.memory import ArrayReader, ArrayWriter, PixelReader, PixelWriter
from tilefuse.planner import Plan, Serving
from tilefuse.row_windows import run_rows
from tilefuse.runners import FloatRunner, PixelRunner
from tilefuse.shrinking import ShrinkingRunner
from tilefuse.tiling import Grid

if TYPE_CHECKING:
    from tilefuse.api import Engine


def run_windows(
    engine: Engine, job: Job, plan: Plan, grid: Grid, serving: Serving, progress: Progress | None
) -> Execution:
    """Run every window of a job as planned; `execute` says what it raises."""
    if plan.rows and engine.model.graph is not None:
        rows_in, rows_out = ArrayReader(job.source, engine.model.image_channels[0]), ArrayWriter(job.result)
        return run_rows(engine.model.graph, grid, rows_in, rows_out, plan.device, progress)
    if _takes_pixels(engine, job):
        reader: Any = PixelReader(cast(Integers, job.source))
        writer: Any = PixelWriter(cast(Integers, job.result))
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
        writer,
        exact=None if serving.precision == "fp32" else lambda: shrinking("fp32"),
        progress=progress,
        workers=plan.workers,
        batch=batch,
    )
    return replace(done, notes=(*(batch.notes if batch is not None else ()), *runner.notes))


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
