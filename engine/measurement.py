"""Measure candidates on this machine: each compiled, checked against fp32 torch and timed beside the others.

First every backend and precision on a patch, which also checks it; then, for those in front, tiles and threads on as
much of the picture as the time allows. All within a budget of seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from torch import Tensor

from tilefuse.backends import registry
from tilefuse.backends.pixels import Integers, compile_pixels
from tilefuse.calibration import Difference, compare, picture, probe_size, reference_of
from tilefuse.candidates import Candidate, precisions, thread_splits, tiles
from tilefuse.cost import peak_live_bytes, weight_bytes
from tilefuse.cost_model import predicted_compile_seconds, predicted_image_seconds
from tilefuse.errors import BackendError, DeviceError, ModelError
from tilefuse.execute import Runner, execute
from tilefuse.memory import ArrayReader, ArrayWriter, PixelReader, Pixels, PixelWriter
from tilefuse.model import Model
from tilefuse.planner import BACKEND_FACTOR, input_shapes
from tilefuse.resident import peak_growth
from tilefuse.runners import FloatRunner, PixelRunner
from tilefuse.tiling import Grid, grid
from tilefuse.timing import timed

# A candidate this many times slower than the fastest leaves the rounds.
_DROP_FACTOR = 1.25
_ROUNDS = 9
# The patch of the first stage, and the share of the time that stage may take.
_PROBE_SHARE, _PROBE_FLOPS_A_SECOND = 0.05, 40e9
_FIRST_STAGE_SHARE = 0.6
# Backends whose tiles and threads are tried: those this close to the fastest on the patch.
_FINALIST_FACTOR, _FINALISTS = 1.3, 2
_WINDOWS_A_WORKER = 2
_SLOW_COMPILE_S = 2.0
# Below this much live data what a process grows by is the library's, not the network's.
_TOLD_BYTES = 32 << 20
_LARGEST_FACTOR = 4.0


@dataclass(frozen=True)
class Subject:
    """What is measured: `images` of height x width, of a numpy type's name."""

    images: int
    height: int
    width: int
    dtype: str


@dataclass(frozen=True)
class Measurement:
    """One candidate. `seconds` are for the subject, estimated from `window_seconds` a window; None when not timed.

    `reason` says why it may not serve, or was not timed; None when it may. `memory_factor` is what the process grew by
    a byte of live activations, None where that could not be told.
    """

    candidate: Candidate
    window: tuple[int, int]
    seconds: float | None = None
    window_seconds: float | None = None
    levels: float | None = None
    psnr_db: float | None = None
    memory_factor: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Task:
    """Everything that measuring needs to know."""

    model: Model
    subject: Subject
    device: str
    backends: Sequence[str]
    policy: str
    tile: int | None
    threads: int
    memory: int
    budget_s: float


@dataclass(frozen=True, eq=False)
class Entrant:
    """A compiled candidate: `run` runs some windows of the picture, `scale` times which is the whole subject."""

    measurement: Measurement
    run: Callable[[], object]
    windows: int
    scale: float


def measure(task: Task) -> tuple[Measurement, ...]:
    """Measure the candidates of a task, the fastest right one first, then the others, then those that may not serve.

    Raises:
        ModelError: the network is no image-to-image network.
    """
    deadline = time.perf_counter() + task.budget_s
    first_deadline = time.perf_counter() + _FIRST_STAGE_SHARE * task.budget_s
    patch = probe_size(
        task.model,
        task.subject.height,
        task.subject.width,
        _PROBE_SHARE * task.budget_s * _PROBE_FLOPS_A_SECOND,
    )
    probe = replace(task, subject=replace(task.subject, height=patch[0], width=patch[1]))
    reference = _reference(probe)
    refused: list[Measurement] = []
    entrants: list[Entrant] = []
    for candidate in offered(task):
        # However short the time, one is measured.
        found = _enter(probe, candidate, reference, first_deadline if entrants else math.inf)
        (entrants if isinstance(found, Entrant) else refused).append(found)  # type: ignore[arg-type]
    first = ranked(entrants, first_deadline)
    del entrants
    finals, late = _finalists(task, first, reference, patch, deadline)
    # Where there was no time for the subject itself, the patch has to tell by how much a backend is faster.
    told = {measurement.candidate.backend for measurement in finals}
    scaled = [_scaled(m, task) for m in first if m.candidate.backend not in told]
    right = sorted((*finals, *scaled), key=lambda m: m.seconds or math.inf)
    return (*right, *late, *refused)


def measured_table(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """Write measurements for people: candidate, time, difference, verdict."""
    lines = []
    for place, m in enumerate(measurements):
        shown = "not timed" if m.seconds is None else f"{m.seconds * 1000:.1f} ms"
        if m.levels is None or m.psnr_db is None:
            difference = "not compared"
        else:
            difference = f"{m.levels:.2g} levels, " + ("equal" if math.isinf(m.psnr_db) else f"{m.psnr_db:.1f} dB")
        verdict = m.reason or ("chosen" if place == 0 else "slower")
        lines.append(f"{m.candidate}: {shown}, {difference}, {verdict}")
    return tuple(lines)


def offered(task: Task) -> list[Candidate]:
    """List backends and precisions, the one predicted to be fastest first."""
    listed = [
        Candidate(name, precision, task.threads)
        for name in task.backends
        for precision in precisions(task.policy, task.subject.dtype, task.device)
    ]
    size = (task.subject.images, task.subject.height, task.subject.width)
    return sorted(
        listed,
        key=lambda c: (
            predicted_image_seconds(task.model, c.backend, c.precision, size, c.threads)
            + predicted_compile_seconds(task.model, c.backend)
        ),
    )


def _reference(task: Task) -> Tensor:
    source = _picture(task)
    run = reference_of(task.model)
    cut = grid(task.subject.height, task.subject.width, 0, task.model.geometry())
    tile = ArrayReader(source, task.model.image_channels[0]).read(cut[0])
    out_h, out_w = cut.output
    return run(tile)[:, :, :out_h, :out_w]


def _picture(task: Task) -> Pixels:
    subject = task.subject
    return picture(subject.height, subject.width, task.model.image_channels[0], subject.images, np.dtype(subject.dtype))


def _enter(task: Task, candidate: Candidate, reference: Tensor | None, deadline: float) -> Entrant | Measurement:
    """Compile a candidate, run it once and compare what it gives; a measurement says why it does not take part."""
    cut = grid(task.subject.height, task.subject.width, candidate.tile, task.model.geometry())
    entered = Measurement(candidate, cut.window)
    reason = refusal(task, candidate)
    if reason is not None:
        return replace(entered, reason=reason)
    compiling = predicted_compile_seconds(task.model, candidate.backend)
    if time.perf_counter() + compiling > deadline:
        return replace(entered, reason=f"not measured: too little time to compile it (about {compiling:.1f} s)")
    if _live_bytes(task, cut.window, candidate.workers) * BACKEND_FACTOR > task.memory:
        return replace(entered, reason="not measured: it needs more memory than is allowed")
    workers = min(candidate.workers, len(cut))
    chosen = range(min(len(cut), _WINDOWS_A_WORKER * workers)) if workers > 1 else range(min(len(cut), 2))
    try:
        run, result, factor = _prepared(task, candidate, cut, chosen)
    except (BackendError, DeviceError, ModelError, MemoryError) as error:
        return replace(entered, reason=f"can't serve: {error}")
    difference = None if reference is None else _difference(task, cut, result, reference, candidate)
    if difference is not None:
        entered = replace(entered, levels=difference.levels, psnr_db=difference.psnr_db, reason=difference.reason)
        if difference.reason is not None:
            return entered
    return Entrant(replace(entered, memory_factor=factor), run, len(chosen), len(cut) / len(chosen))


def refusal(task: Task, candidate: Candidate) -> str | None:
    """Give the reason a candidate can't serve at all, or None."""
    backend = registry.get(candidate.backend)
    reason = backend.available() or backend.refusal(task.model, task.device, candidate.precision)
    return None if reason is None else f"can't serve: {reason}"


def _prepared(
    task: Task, candidate: Candidate, cut: Grid, chosen: Sequence[int]
) -> tuple[Callable[[], object], Pixels, float | None]:
    """Compile, and run once to warm up; give the call to time, its result and what memory it took."""
    source = _picture(task)
    channels = task.model.image_channels
    result = cast(Pixels, np.zeros((task.subject.images, *cut.output, channels[1]), source.dtype))
    made: list[Callable[[], object]] = []

    def begin() -> None:
        runner = compiled(task.model, candidate, task.subject.images, cut.window, source.dtype, task.device)
        if source.dtype.kind == "u":
            reader: Any = PixelReader(cast(Integers, source))
            writer: Any = PixelWriter(cast(Integers, result))
        else:
            reader, writer = ArrayReader(source, channels[0]), ArrayWriter(result)
        made.append(lambda: execute(cut, runner, reader, writer, windows=chosen, workers=candidate.workers))
        made[0]()

    _, growth = peak_growth(begin)
    return made[0], result, _memory_factor(task, cut.window, candidate.workers, growth)


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


def _memory_factor(task: Task, window: tuple[int, int], workers: int, growth: int | None) -> float | None:
    live = _live_bytes(task, window, workers)
    if growth is None or task.model.graph is None or live < _TOLD_BYTES:
        return None
    return min(_LARGEST_FACTOR, max(1.0, (growth - weight_bytes(task.model.graph)) / live))


def _live_bytes(task: Task, window: tuple[int, int], workers: int) -> int:
    """Activations that the windows run at once hold, from the graph."""
    graph = task.model.graph
    if graph is None:
        return 0
    live = peak_live_bytes(graph, graph.shapes(*input_shapes(graph, 1, window)))
    return task.subject.images * workers * live


def _difference(task: Task, cut: Grid, result: Pixels, reference: Tensor, candidate: Candidate) -> Difference | None:
    """Compare the corner that both the candidate and the reference know; None when there is none."""
    height, width = (
        _known(span.core_stop, size, edge, axis_scale)
        for span, size, edge, axis_scale in zip(
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


def _known(core_stop: int, size: int, edge: int, lost: int) -> int:
    return min(core_stop, size, edge - lost)


def _lost(model: Model, patch: Sequence[int], whole: Sequence[int]) -> tuple[int, int]:
    """Rows and columns at the end of a patch's result that another picture would change: none if it is the whole."""
    found = model.geometry()
    after = (found.y, found.x)
    rows, columns = (
        0 if edge == size else math.ceil((axis.after + axis.alignment) * axis.scale)
        for axis, edge, size in zip(after, patch, whole, strict=True)
    )
    return rows, columns


def ranked(entrants: Sequence[Entrant], deadline: float) -> list[Measurement]:
    """Time in interleaved rounds, leave out who is clearly behind, and sort by the median."""
    seconds: dict[int, list[float]] = {place: [] for place in range(len(entrants))}
    racing = set(seconds)
    for number in range(_ROUNDS):
        for place in sorted(racing):
            if seconds[place] and time.perf_counter() > deadline:
                continue
            seconds[place].append(timed(entrants[place].run) * entrants[place].scale)
        if time.perf_counter() > deadline:
            break
        best = min((min(taken) for taken in seconds.values() if taken), default=0.0)
        if number:
            racing = {place for place in racing if min(seconds[place]) <= _DROP_FACTOR * best}
    ranked = []
    for place, entrant in enumerate(entrants):
        median = float(np.median(seconds[place]))
        each = median / entrant.scale / entrant.windows
        ranked.append(replace(entrant.measurement, seconds=median, window_seconds=each))
    return sorted(ranked, key=lambda m: m.seconds or math.inf)


def _finalists(
    task: Task, first: Sequence[Measurement], reference: Tensor, patch: tuple[int, int], deadline: float
) -> tuple[list[Measurement], list[Measurement]]:
    """Time tiles and threads of the leading backends on the subject itself, as far as there is time."""
    if not first or ((task.subject.height, task.subject.width) == patch and task.threads == 1):
        return [], []
    leading = [m for m in first if (m.seconds or math.inf) <= _FINALIST_FACTOR * (first[0].seconds or math.inf)]
    checked = None if task.model.geometry().global_ops and patch != _padded(task) else reference
    entrants: list[Entrant] = []
    refused: list[Measurement] = []
    for leader in leading[:_FINALISTS]:
        for candidate in _variants(task, leader.candidate):
            expected = _expected_seconds(leader, task, candidate)
            # It is run to warm up, and twice at least to be timed.
            if time.perf_counter() + 3 * expected > deadline:
                refused.append(Measurement(candidate, (0, 0), reason="not measured: no time left"))
                continue
            found = _enter(task, candidate, checked, deadline)
            if isinstance(found, Entrant):
                # What the small patch has shown holds where the larger one was not compared.
                kept = found.measurement
                if kept.levels is None:
                    kept = replace(kept, levels=leader.levels, psnr_db=leader.psnr_db)
                entrants.append(replace(found, measurement=kept))
            else:
                refused.append(found)
    return ranked(entrants, deadline), refused


def _variants(task: Task, leader: Candidate) -> list[Candidate]:
    """List tiles and threads of a backend, the most promising ones first: what stays in the cache."""
    sizes = (task.tile,) if task.tile is not None else tiles(task.model, task.subject.height, task.subject.width)
    listed = []
    for tile in sorted(sizes, key=lambda t: (t == 0, -t)):
        for workers, threads in thread_splits(leader.backend, task.threads):
            if workers > 1 and tile == 0:
                continue
            listed.append(replace(leader, tile=tile, workers=workers, threads=threads))
    return listed


def _expected_seconds(leader: Measurement, task: Task, candidate: Candidate) -> float:
    """Scale the patch's time to the windows that timing a candidate once would run."""
    cut = grid(task.subject.height, task.subject.width, candidate.tile, task.model.geometry())
    windows = min(len(cut), max(2, _WINDOWS_A_WORKER * candidate.workers))
    patch_px = leader.window[0] * leader.window[1]
    return (leader.window_seconds or 0.0) * windows * cut.window[0] * cut.window[1] / patch_px


def _scaled(measurement: Measurement, task: Task) -> Measurement:
    """Estimate the subject's time from the patch's."""
    share = task.subject.height * task.subject.width / (measurement.window[0] * measurement.window[1])
    return replace(measurement, seconds=(measurement.seconds or 0.0) * share)


def _padded(task: Task) -> tuple[int, int]:
    found = task.model.geometry()
    return (
        found.y.padded(task.subject.height, found.minimum_px),
        found.x.padded(task.subject.width, found.minimum_px),
    )
