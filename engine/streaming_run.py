"""Run an image larger than memory: windows in, a raster of finished windows, a journal, then the encoded result."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import numpy as np

from tilefuse.backends.base import Precision, Session
from tilefuse.backends.pixels import PixelSession
from tilefuse.errors import BackendError, ImageError, UsageError
from tilefuse.execute import Execution, Progress, Runner, execute
from tilefuse.fingerprint import fingerprint
from tilefuse.images.outputs import shown
from tilefuse.job_files import JobFiles, remove
from tilefuse.journal import Header, History, Journal, differences, peek
from tilefuse.machine import release_memory
from tilefuse.model import Model
from tilefuse.planner import Plan, Request, Serving
from tilefuse.runners import FloatRunner, PixelRunner
from tilefuse.shrinking import ShrinkingRunner
from tilefuse.storage import check_target, encode, open_raster
from tilefuse.storage.base import RasterInfo, RasterReader
from tilefuse.storage.cells import UnfinishedRaster
from tilefuse.storage.flat import check_free_space, disk_errors
from tilefuse.storage.gate import GatedRaster, RowGate
from tilefuse.storage.registry import Target, encodes_rows, unfinished_raster
from tilefuse.storage.tiff_encode import CancelledError
from tilefuse.streamed_budget import kept_bytes, planned_windows, reader_bytes
from tilefuse.streamed_cores import FinishedWindows, PixelCores, RasterCores, verified
from tilefuse.streamed_encoding import beside
from tilefuse.streamed_job import (
    StreamJob,
    check_names,
    check_result,
    disk_bytes,
    interpreted,
    result_info,
    result_notes,
)
from tilefuse.streamed_windows import Planes, RasterPixels, RasterWindows, split_bands
from tilefuse.tiling import Grid

Result = TypeVar("Result")

_LIBRARIES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "ncnn": "ncnn"}


@dataclass(frozen=True)
class Network:
    """The network: `floats` compiles it for float windows of one image, `pixels` for windows of integers.

    `choose` says who may serve a raster, the best first, given what the journal to go on with was begun with.
    """

    model: Model
    choose: Callable[[RasterInfo, Header | None], Sequence[Serving]]
    floats: Callable[[Serving, tuple[int, int], Precision], Session]
    pixels: Callable[[Serving, tuple[int, int], np.dtype[Any], Precision], PixelSession]
    halo_px: int | None = None
    forget: Callable[[tuple[int, int]], None] = lambda _: None


@dataclass(frozen=True, eq=False)
class Work:
    """A planned job: `info` is the input as interpreted, `result` what comes out.

    `kept_bytes` of finished cores may wait in memory for the encoder.
    """

    job: StreamJob
    network: Network
    serving: Serving
    files: JobFiles
    reader: RasterReader
    info: RasterInfo
    result: RasterInfo
    planes: Planes
    plan: Plan
    grid: Grid
    kept_bytes: int
    cancelled: Callable[[], bool]


@dataclass(frozen=True)
class StreamResult:
    """What a streamed job did; `resumed` windows were done before."""

    plan: Plan
    execution: Execution
    resumed: int
    notes: tuple[str, ...]


def run_streamed(
    job: StreamJob,
    network: Network,
    request: Request,
    *,
    cancelled: Callable[[], bool],
    progress: Progress | None,
    on_plan: Callable[[Plan], None] | None,
    on_encode: Progress | None = None,
) -> StreamResult:
    """Run a job, or go on with it. `on_encode(rows, total)` tells how many rows of the result are encoded.

    Raises:
        ImageError: the input is damaged; what is done stays for `resume`.
        UsageError: the output can't be written, another run holds it, or the job to resume is not this one.
        CapacityError: memory or disk do not suffice.
        BackendError: nobody can compile the windows.
    """
    if request.rows:
        raise UsageError(
            "schedule rows is for images held in memory: a pass that begins anew in the middle need not round alike, "
            "and a job that is resumed gives the same bytes. Leave the schedule to the planner"
        )
    files = JobFiles(job.output)
    check_names(job, files)
    reader = open_raster(job.source, job.output.absolute().parent, reader_bytes(request.memory))
    try:
        info = interpreted(reader.info, job)
        recorded = peek(files.journal) if job.resume else None
        if recorded is not None and request.tile is None:
            # The windows of the first try, whatever memory there is now: only then are all samples the same.
            request = replace(request, tile=int(recorded.get("tile", "0")))
        planes = _named(job, lambda: split_bands(info, network.model.image_channels, per_band=job.per_band))
        serving, made, grid = _settled(
            network.choose(info, recorded),
            lambda serving: planned_windows(network.model, job, info, planes, request, serving),
            lambda serving, window: _compiled(network, serving, planes, info, window, serving.precision),
        )
        kept = kept_bytes(job, made)
        made = replace(made, peak_bytes=made.peak_bytes + kept)
        result = result_info(info, planes, made, job)
        check_result(job, result, made)
        if on_plan is not None:
            on_plan(made)
        header = _header(job, network, serving, made, planes, cancelled)
        with disk_errors("the journal"):
            journal = Journal(files.journal)
        work = Work(job, network, serving, files, reader, info, result, planes, made, grid, kept, cancelled)
        try:
            return _run(work, journal, header, progress, on_encode)
        finally:
            journal.close()
    finally:
        reader.close()


def _settled(
    servings: Sequence[Serving],
    planned: Callable[[Serving], tuple[Plan, Grid]],
    compiled: Callable[[Serving, tuple[int, int]], object],
) -> tuple[Serving, Plan, Grid]:
    """Plan for the first who can compile its window, before anything is written."""
    failed: list[str] = []
    for serving in servings:
        serving = replace(serving, why=(*serving.why, *failed))
        made, grid = planned(serving)
        if made.workers < min(serving.workers, len(grid)):
            # There is memory for one window at a time alone: it gets all threads.
            serving = replace(serving, workers=1, threads=_all_threads(serving))
            made, grid = planned(serving)
        try:
            compiled(serving, grid.window)
        except BackendError as error:
            failed.append(f"{serving.backend} can't compile this window: {error}")
        except MemoryError:
            # Smaller windows may fit; the run finds out.
            return serving, made, grid
        else:
            return serving, made, grid
    raise BackendError("; ".join(failed))


def _all_threads(serving: Serving) -> int:
    """Add up the threads of all workers; those of a GPU's don't share the processors out between them."""
    return serving.threads if serving.device.startswith("cuda") else serving.workers * serving.threads


def _run(
    work: Work, journal: Journal, header: Header, progress: Progress | None, on_encode: Progress | None
) -> StreamResult:
    job, files, grid, result = work.job, work.files, work.grid, work.result
    history = _history(job, files, journal, header)
    notes = (*result.notes, *result_notes(job, result))
    if history.encoded and files.published():
        _clean(files, journal)
        return StreamResult(work.plan, Execution(0, 0.0, 0.0, 0), len(grid), (*notes, "it was complete already"))
    if job.resume and not job.overwrite:
        check_target(job.output, overwrite=False)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with disk_errors("the unfinished result"):
        if not os.path.lexists(files.part):
            files.take_back()
        # With the permissions of any new file: an .npy result is this very file.
        descriptor = os.open(files.part, flags | (0 if history.windows else os.O_TRUNC), 0o666)
    try:
        there = os.stat(descriptor).st_blocks * 512
        check_free_space(job.output.absolute().parent, disk_bytes(job, result) - there)
        raster = unfinished_raster(descriptor, job.output.suffix.lower(), result, grid, work.kept_bytes)
        done = verified(raster, grid, history.windows, work.cancelled)
        execution = Execution(0, 0.0, 0.0, 0)
        if len(done) < len(grid) or not history.encoded or not os.path.lexists(files.encoded):
            if history.encoded:
                journal.encoding()
            execution = _compute_and_encode(work, raster, journal, done, progress, on_encode)
            files.flush_encoded()
            journal.encoded()
    finally:
        os.close(descriptor)
    files.publish(overwrite=job.overwrite)
    _clean(files, journal)
    return StreamResult(work.plan, execution, len(done), notes)


def _compute_and_encode(
    work: Work,
    raster: UnfinishedRaster,
    journal: Journal,
    done: Collection[int],
    progress: Progress | None,
    on_encode: Progress | None,
) -> Execution:
    """Run the windows that are not done, and encode rows as they are finished; of a failure no half result stays."""
    job, files, height = work.job, work.files, work.result.height
    gate = RowGate(work.grid, done, work.cancelled)

    def reached(row: int) -> None:
        raster.passed(row)
        files.begin_flush()
        if on_encode is not None:
            on_encode(row, height)

    gated = GatedRaster(raster, gate, reached)
    target = Target(files.part, gated, work.result, job.compression, lambda: gate.closed, job.pyramid)
    suffix = job.output.suffix.lower()

    def encoded() -> None:
        if not encodes_rows(suffix):
            gate.wait(height)
            work.network.forget(work.grid.window)
            release_memory()
        encode(target, suffix, files.target())
        reached(height)

    try:
        with beside(encoded, gate) as check:
            return _compute(work, raster, journal, done, progress, gate, check)
    except BaseException:
        files.take_back()
        raise


def _compute(
    work: Work,
    raster: UnfinishedRaster,
    journal: Journal,
    done: Collection[int],
    progress: Progress | None,
    gate: RowGate,
    check: Callable[[], None],
) -> Execution:
    """Run the windows that are not done, while `check` does not raise."""
    grid = work.grid

    def advanced(count: int, _: int) -> None:
        if work.cancelled():
            raise CancelledError
        check()
        if progress is not None:
            progress(len(done) + count, len(grid))

    finished = FinishedWindows(raster, journal, grid, gate.finished)
    if work.planes.are_pixels(work.info):
        reader: Any = RasterPixels(work.reader)
        writer: Any = PixelCores(finished)
    else:
        reader = RasterWindows(work.reader, work.info, work.planes)
        writer = RasterCores(finished, work.reader, work.info, work.planes)
    precision = work.serving.precision
    runner = _runner(work, precision)
    try:
        execution = _named(
            work.job,
            lambda: execute(
                grid,
                runner,
                reader,
                writer,
                exact=None if precision == "fp32" else lambda: _runner(work, "fp32"),
                progress=advanced,
                windows=[index for index in range(len(grid)) if index not in done],
                workers=work.plan.workers,
            ),
        )
        finished.flush()
    finally:
        finished.close()
    return replace(execution, notes=runner.notes)


def _runner(work: Work, precision: Precision) -> ShrinkingRunner[Any]:
    network = work.network

    def compiled(window: tuple[int, int]) -> Runner[Any]:
        return _compiled(network, work.serving, work.planes, work.info, window, precision)

    geometry = network.model.geometry()
    return ShrinkingRunner(compiled, work.grid.window, geometry, network.halo_px, network.forget, work.serving.device)


def _compiled(
    network: Network,
    serving: Serving,
    planes: Planes,
    info: RasterInfo,
    window: tuple[int, int],
    precision: Precision,
) -> Runner[Any]:
    if planes.are_pixels(info):
        return PixelRunner(network.pixels(serving, window, info.dtype, precision))
    return FloatRunner(network.floats(serving, window, precision), one_by_one=True)


def _header(
    job: StreamJob, network: Network, serving: Serving, made: Plan, planes: Planes, cancelled: Callable[[], bool]
) -> dict[str, str]:
    """Return everything that the samples depend on, as text."""
    from tilefuse import __version__

    library = _LIBRARIES.get(made.backend, "torch")
    try:
        library_version = version(library)
    except PackageNotFoundError:
        library_version = "unknown"
    return {
        "version": __version__,
        "input": fingerprint(job.source, cancelled),
        "model": network.model.sha256,
        "backend": f"{made.backend} ({library} {library_version}) on {made.device}",
        "precision": made.precision,
        "threads": str(serving.threads),
        "size": f"{made.width}x{made.height} to {made.output_width}x{made.output_height}",
        "tile": str(made.tile),
        "halo": str(made.halo_px),
        "window": f"{made.window[1]}x{made.window[0]}",
        "windows": str(made.windows),
        "bands": " ".join(",".join(map(str, group)) for group in planes.groups),
        "range": "own" if job.value_range is None else f"{float(job.value_range[0])}:{float(job.value_range[1])}",
        "format": f"{job.output.suffix.lower()} {job.compression}" + (" pyramid" if job.pyramid else ""),
    }


def _history(job: StreamJob, files: JobFiles, journal: Journal, header: Header) -> History:
    """Return what is done already; start a journal where there is nothing to go on with."""
    history = journal.history()
    if job.resume and history.header is not None:
        changed = differences(history.header, header)
        if changed:
            raise UsageError(
                f"{shown(job.output)}: can't be resumed, the job is another one: {'; '.join(changed)}. "
                "Give what was given before, or start anew with --overwrite"
            )
        return history
    remove(files.encoded)
    journal.start(header)
    return History(dict(header), {}, False)


def _clean(files: JobFiles, journal: Journal) -> None:
    remove(files.part)
    remove(files.encoded)
    journal.remove()


def _named(job: StreamJob, work: Callable[[], Result]) -> Result:
    """Put the input's name before what is wrong with it."""
    try:
        return work()
    except ImageError as error:
        raise ImageError(f"{shown(job.source)}: {error}") from error
