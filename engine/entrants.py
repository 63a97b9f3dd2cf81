"""Compile a candidate, run it once and hold what it gives against fp32 torch: then it may be timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import Tensor

from tilefuse.backends import registry
from tilefuse.backends.pixels import Integers, compile_pixels
from tilefuse.batching import Batch
from tilefuse.calibration import Difference, compare, picture
from tilefuse.candidates import Candidate, batches
from tilefuse.cost import cost_of, weight_bytes
from tilefuse.errors import BackendError, CapacityError, DeviceError, ModelError
from tilefuse.execute import Runner, execute
from tilefuse.memory import ArrayReader, ArrayWriter, PixelReader, Pixels, PixelWriter
from tilefuse.model import Model
from tilefuse.pacing import Pace, timing_seconds
from tilefuse.planner import assumed_factor, calls_held, input_shapes
from tilefuse.resident import peak_growth
from tilefuse.runners import FloatRunner, PixelRunner
from tilefuse.shrinking import ShrinkingRunner
from tilefuse.tasks import Entrant, Measurement, Task
from tilefuse.tiling import Grid, grid
from tilefuse.timing import timed

_CALLS_A_WORKER = 2
# Below this much live data what a process grows by is the library's, not the network's.
_TOLD_BYTES = 32 << 20
# Nor is what passes twice the assumed: it does not grow with the window.
_LARGEST_EXCESS = 2.0


def enter(task: Task, candidate: Candidate, reference: Tensor | None) -> Entrant | Measurement:
    """Compile a candidate, run it once and compare what it gives; a measurement says why it does not take part."""
    cut = grid(task.subject.height, task.subject.width, candidate.tile, task.model.geometry())
    entered = Measurement(candidate, cut.window)
    reason = refusal(task, candidate)
    if reason is not None:
        return replace(entered, reason=reason)
    if _live_bytes(task, cut.window, candidate) * assumed_factor(candidate.backend) > task.memory:
        return replace(entered, reason="not measured: it needs more memory than is allowed")
    try:
        entrant, growth = _prepared(task, candidate, cut)
    except (BackendError, CapacityError, DeviceError, ModelError, MemoryError) as error:
        return replace(entered, reason=f"can't serve: {error}")
    difference = None if reference is None else _difference(task, cut, entrant.result, reference, candidate)
    if difference is not None:
        entered = replace(entered, levels=difference.levels, psnr_db=difference.psnr_db, reason=difference.reason)
        if difference.reason is not None:
            return entered
    factor = _memory_factor(task, cut.window, candidate, growth)
    return replace(entrant, measurement=replace(entered, memory_factor=factor))


def enter_in_time(
    task: Task,
    candidate: Candidate,
    reference: Tensor | None,
    pace: Pace,
    predicted: tuple[float, float],
    entrants: Sequence[Entrant],
    *,
    must: bool = False,
) -> Entrant | Measurement:
    """Let a candidate take part if it can compile, warm up and be timed once, beside those that are in already.

    `predicted` are the seconds of compiling and of a run.
    """
    entering_s = sum(predicted)
    reason = refusal(task, candidate)
    needed_s = entering_s + predicted[1] + timing_seconds(entrants)
    if reason is None and not must and not pace.allows(needed_s):
        reason = pace.refusal(needed_s)
    if reason is None and not must and not _fits_beside(task, candidate, entrants):
        reason = "not measured: the memory allowed does not hold it beside the others"
    if reason is not None:
        return Measurement(candidate, (0, 0), reason=reason)
    return pace.step(entering_s, lambda: enter(task, candidate, reference))


def refusal(task: Task, candidate: Candidate) -> str | None:
    """Give the reason a candidate can't serve at all, or None."""
    backend = registry.get(candidate.backend)
    reason = backend.available() or backend.refusal(task.model, task.device, candidate.precision)
    return None if reason is None else f"can't serve: {reason}"


def windows_timed(task: Task, candidate: Candidate, cut: Grid) -> int:
    """Return how many windows tell a candidate's time: those of one tile are told by as many, whatever the batch."""
    largest = max(batches(task.model, candidate.backend, task.device, cut))
    return min(len(cut), _CALLS_A_WORKER * candidate.workers * largest)


def drawn(task: Task) -> Pixels:
    """Draw the picture that a task is measured with."""
    subject = task.subject
    return picture(subject.height, subject.width, task.model.image_channels[0], subject.images, np.dtype(subject.dtype))


def _prepared(task: Task, candidate: Candidate, cut: Grid) -> tuple[Entrant, int | None]:
    """Compile, and run once to warm up; say how far the process grew by it."""
    source = drawn(task)
    channels = task.model.image_channels
    result = cast(Pixels, np.zeros((task.subject.images, *cut.output, channels[1]), source.dtype))
    chosen = range(windows_timed(task, candidate, cut))
    if source.dtype.kind == "u":
        reader: Any = PixelReader(cast(Integers, source))
        writer: Any = PixelWriter(cast(Integers, result))
    else:
        reader, writer = ArrayReader(source, channels[0]), ArrayWriter(result)
    compiled_for: list[Runner[Any]] = []

    def compile_it() -> None:
        images = task.subject.images * candidate.batch
        compiled_for.append(compiled(task.model, candidate, images, cut.window, source.dtype, task.device))

    def run() -> None:
        (runner,) = compiled_for
        batch = Batch(candidate.batch, lambda: runner) if candidate.batch > 1 else None
        # Windows that a batch could not take go alone; the candidate is no such thing then.
        alone = runner if batch is None else _single(task, candidate, cut, source.dtype)
        execute(cut, alone, reader, writer, windows=chosen, workers=candidate.workers, batch=batch)
        if batch is not None and batch.notes:
            raise CapacityError("; ".join(batch.notes))

    seconds, growth = peak_growth(lambda: (timed(compile_it), timed(run)), task.device)
    entered = Measurement(candidate, cut.window)
    return Entrant(entered, run, len(chosen), len(cut) / len(chosen), *seconds, result), growth


def _single(task: Task, candidate: Candidate, cut: Grid, dtype: np.dtype[Any]) -> Runner[Any]:
    return ShrinkingRunner(
        lambda window: compiled(task.model, candidate, task.subject.images, window, dtype, task.device),
        cut.window,
        task.model.geometry(),
        device=task.device,
    )


def compiled(
    model: Model, candidate: Candidate, images: int, window: tuple[int, int], dtype: np.dtype[Any], device: str
) -> Runner[Any]:
    """Compile a candidate for windows of integers or floats.

    Raises:
        BackendError: the backend can't serve the model so.
    """
    backend = registry.get(candidate.backend)
    if model.graph is not None:
        shape = input_shapes(model.graph, images, window)[0]
    else:
        shape = (images, model.image_channels[0], *window)
    precision, threads = candidate.precision, candidate.threads
    if dtype.kind == "u":
        return PixelRunner(
            compile_pixels(backend, model, shape, dtype, device=device, precision=precision, threads=threads)
        )
    return FloatRunner(backend.compile(model, [shape], device=device, precision=precision, threads=threads))


def _memory_factor(task: Task, window: tuple[int, int], candidate: Candidate, growth: int | None) -> float | None:
    live = _live_bytes(task, window, candidate)
    if growth is None or task.model.graph is None or live < _TOLD_BYTES:
        return None
    largest = _LARGEST_EXCESS * assumed_factor(candidate.backend)
    return min(largest, max(1.0, (growth - weight_bytes(task.model.graph)) / live))


def _fits_beside(task: Task, candidate: Candidate, entrants: Sequence[Entrant]) -> bool:
    """Tell whether a GPU's memory holds what takes part and one more: all are timed in turns, and keep their arenas."""
    if not task.device.startswith("cuda"):
        return True
    cut = grid(task.subject.height, task.subject.width, candidate.tile, task.model.geometry())
    there = [(e.measurement.candidate, e.measurement.window) for e in entrants]
    held = sum(
        _live_bytes(task, window, c) * assumed_factor(c.backend) for c, window in (*there, (candidate, cut.window))
    )
    return held <= task.memory


def _live_bytes(task: Task, window: tuple[int, int], candidate: Candidate) -> int:
    """Activations that the windows run at once hold, from the graph."""
    graph = task.model.graph
    if graph is None:
        return 0
    live = cost_of(graph, input_shapes(graph, 1, window)).live_bytes
    return task.subject.images * calls_held(candidate.backend, candidate.workers) * candidate.batch * live


def _difference(task: Task, cut: Grid, result: Pixels, reference: Tensor, candidate: Candidate) -> Difference | None:
    """Compare the corner that both the candidate and the reference know; None when there is none."""
    height, width = (
        min(span.core_stop, size, edge - lost)
        for span, size, edge, lost in zip(
            (cut.rows[0], cut.columns[0]),
            cut.output,
            reference.shape[2:],
            _lost(task.model, reference.shape[2:], cut.output),
            strict=True,
        )
    )
    if min(height, width) <= 0:
        return None
    forced = task.policy not in ("auto", "fp32")
    corner = reference[:, :, :height, :width]
    return compare(result[:, :height, :width], corner, candidate.precision, forced=forced)


def _lost(model: Model, patch: Sequence[int], whole: Sequence[int]) -> tuple[int, int]:
    """Rows and columns at the end of a patch's result that another picture would change: none if it is the whole."""
    found = model.geometry()
    after = (found.y, found.x)
    rows, columns = (
        0 if edge == size else math.ceil((axis.after + axis.alignment) * axis.scale)
        for axis, edge, size in zip(after, patch, whole, strict=True)
    )
    return rows, columns
