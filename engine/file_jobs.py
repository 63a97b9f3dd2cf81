"""Files through an engine: held in memory as pictures, or streamed where they do not fit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tilefuse.candidates import thread_splits
from tilefuse.compiling import memory_budget
from tilefuse.errors import UsageError
from tilefuse.execute import Progress
from tilefuse.images import MAX_PIXELS, Picture, check_output, write_image
from tilefuse.images.rows import Rows
from tilefuse.interruptible import run_interruptibly
from tilefuse.journal import Header
from tilefuse.machine import cpu_threads
from tilefuse.masks import Mask
from tilefuse.measurement import Subject
from tilefuse.planner import Plan, Serving
from tilefuse.storage import is_raster_name, probe
from tilefuse.storage.base import RasterInfo
from tilefuse.streamed_job import StreamJob
from tilefuse.streaming_run import Network, run_streamed

if TYPE_CHECKING:
    from tilefuse.api import Engine

# A picture job holds the decoded image, its result, and for a while the encoder's or decoder's copy of either.
HELD_COPIES = 2.5
# Of more, the encoder's two threads are too small a share to plan for.
_FEW_PROCESSORS = 4


@dataclass(frozen=True)
class Report:
    """What `run_file` did: `approximate` is true when the halo was less than the network's.

    `windows` were run by it; `resumed` had been done by a run before.
    """

    input: Path
    output: Path
    plan: Plan
    windows: int
    rerun_fp32: int
    compute_seconds: float
    seconds: float
    approximate: bool
    notes: tuple[str, ...]
    resumed: int = 0


def run_job(
    engine: Engine,
    job: StreamJob,
    read: Callable[[str | os.PathLike[str]], Picture],
    progress: Progress | None,
    on_plan: Callable[[Plan], None] | None,
    mask: Mask | None = None,
    on_encode: Progress | None = None,
) -> Report:
    """Run one file into another; `Engine.run_file` says how and what it raises."""
    if job.resume or job.per_band or job.pyramid or job.value_range is not None or _streams(engine, job):
        if mask is not None:
            raise UsageError(
                f"{job.source}: a mask needs the image in memory, and this job is streamed; allow more memory, and "
                "leave out what streams (resume, bands, a value range, rasters)"
            )
        return _run_streamed(engine, job, progress, on_plan, on_encode)
    return _run_held(engine, job, read, progress, on_plan, mask)


def _run_held(
    engine: Engine,
    job: StreamJob,
    read: Callable[[str | os.PathLike[str]], Picture],
    progress: Progress | None,
    on_plan: Callable[[Plan], None] | None,
    mask: Mask | None,
) -> Report:
    started = time.perf_counter()
    path = check_output(job.output, overwrite=job.overwrite)
    picture = read(job.source)

    def check_plan(made: Plan) -> None:
        check_output(path, overwrite=job.overwrite, size=(made.output_width, made.output_height))
        if on_plan is not None:
            on_plan(made)

    lost: list[str] = []

    def encode(result: Picture, rows: Rows) -> None:
        lost.extend(write_image(path, result, overwrite=job.overwrite, rows=rows))

    made, execution = engine.encode_picture(picture, encode, progress=progress, on_plan=check_plan, mask=mask)
    return Report(
        input=job.source,
        output=path,
        plan=made,
        windows=execution.windows,
        rerun_fp32=execution.rerun_fp32,
        compute_seconds=execution.compute_seconds,
        seconds=time.perf_counter() - started,
        approximate=not made.exact,
        notes=(*picture.notes, *execution.notes, *lost),
    )


def _streams(engine: Engine, job: StreamJob) -> bool:
    """Tell whether a file is a raster, or too large to be held as a picture beside its result."""
    if is_raster_name(job.source) or is_raster_name(job.output):
        return True
    found = probe(job.source)
    if found is None or (engine.footprint.global_ops and engine.options.request.halo_px is None):
        return False
    height, width, pixel_bytes = found
    out_h, out_w = engine.footprint.output_size(height, width)
    held = HELD_COPIES * (height * width + out_h * out_w) * pixel_bytes
    # What a picture holds is this machine's, whatever a GPU may take of its own.
    device = engine.serving.device
    budget = memory_budget("cpu") if device.startswith("cuda") else engine.request().memory
    return held > budget or height * width > MAX_PIXELS


def _run_streamed(
    engine: Engine,
    job: StreamJob,
    progress: Progress | None,
    on_plan: Callable[[Plan], None] | None,
    on_encode: Progress | None,
) -> Report:
    started = time.perf_counter()
    network = Network(
        engine.model,
        lambda info, begun: _servings(engine, info, begun),
        lambda serving, window, precision: engine.session(serving, 1, window, precision),
        lambda serving, window, dtype, precision: engine.pixel_session(serving, 1, window, dtype, precision),
        engine.options.request.halo_px,
        engine.forget,
    )
    done = run_interruptibly(
        lambda cancelled: run_streamed(
            job,
            network,
            engine.request(),
            cancelled=cancelled,
            progress=progress,
            on_plan=on_plan,
            on_encode=on_encode,
        )
    )
    return Report(
        input=job.source,
        output=job.output,
        plan=done.plan,
        windows=done.execution.windows,
        rerun_fp32=done.execution.rerun_fp32,
        compute_seconds=done.execution.compute_seconds,
        seconds=time.perf_counter() - started,
        approximate=not done.plan.exact,
        notes=(*done.notes, *done.execution.notes),
        resumed=done.resumed,
    )


def _servings(engine: Engine, info: RasterInfo, begun: Header | None) -> tuple[Serving, ...]:
    """Choose who may serve a raster; a job that is gone on with stays with who began it, where that may still serve.

    A streamed job is journaled window by window, and runs them one by one.
    """
    dtype = info.dtype.name if info.value_range is None and info.dtype.kind == "u" else "float32"
    subject = Subject(1, info.height, info.width, dtype)
    if begun is None:
        return tuple(_one_by_one(serving) for serving in engine.choices.settle(subject).servings)
    known = (*engine.choices.look(subject).servings, *engine.candidates)
    backend, precision = begun.get("backend", "").partition(" ")[0], begun.get("precision")
    servings = tuple(_one_by_one(serving) for serving in known)
    same = tuple(s for s in servings if (s.backend, s.precision) == (backend, precision))[:1]
    return tuple(_with_threads(serving, int(begun.get("threads", "0"))) for serving in same) or servings


def _one_by_one(serving: Serving) -> Serving:
    """Leave batches out; on few processors, unless it was measured, give each window a thread of its own.

    Threads that share a window wait for each other at every layer, and the encoder holds now the one up, now the other.
    """
    alone = replace(serving, batch=1)
    workers, threads = thread_splits(serving.backend, cpu_threads(), serving.device)[-1]
    if serving.timed or serving.device != "cpu" or not 1 < workers <= _FEW_PROCESSORS:
        return alone
    return replace(alone, workers=workers, threads=threads)


def _with_threads(serving: Serving, threads: int) -> Serving:
    """Go on with as many threads a window as before: with others a library may round in another order."""
    splits = thread_splits(serving.backend, cpu_threads(), serving.device)
    split = next((s for s in splits if s[1] == threads), None)
    workers = 1 if split is None else split[0]
    return replace(serving, workers=workers, threads=threads)
