"""Measure candidates on this machine: each compiled, checked against fp32 torch and timed beside the others.

First every backend and precision on a patch, which also checks it; then, for those in front, tiles, threads and
batches on as much of the picture as the time allows. All within a budget of seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from tilefuse.calibration import probe_size, reference_of
from tilefuse.candidates import Candidate, batches, precisions, thread_splits, tiles
from tilefuse.cost_model import predicted_compile_seconds, predicted_image_seconds
from tilefuse.entrants import drawn, enter, refusal, windows_timed
from tilefuse.memory import ArrayReader
from tilefuse.pacing import Pace, ranked, timing_seconds
from tilefuse.tasks import Entrant, Measurement, Subject, Task, measured_table
from tilefuse.tiling import grid

__all__ = ["Measurement", "Subject", "Task", "measure", "measured_table", "offered"]

# The patch of the first stage, and the share of the time that stage may take.
_PROBE_SHARE, _PROBE_FLOPS_A_SECOND = 0.05, 40e9
_FIRST_STAGE_SHARE = 0.6
# Backends whose tiles, threads and batches are tried: those this close to the fastest on the patch.
_FINALIST_FACTOR, _FINALISTS = 1.3, 2


def measure(task: Task) -> tuple[Measurement, ...]:
    """Measure the candidates of a task, the fastest right one first, then the others, then those that may not serve.

    However short the time, one is measured; only that one may take longer than the budget.

    Raises:
        ModelError: the network is no image-to-image network.
    """
    begin = time.perf_counter()
    patch = probe_size(
        task.model,
        task.subject.height,
        task.subject.width,
        _PROBE_SHARE * task.budget_s * _PROBE_FLOPS_A_SECOND,
    )
    probe = replace(task, subject=replace(task.subject, height=patch[0], width=patch[1]))
    reference = _reference(probe)
    pace = Pace(begin, begin + _FIRST_STAGE_SHARE * task.budget_s)
    entrants: list[Entrant] = []
    refused: list[Measurement] = []
    for candidate in offered(task):
        compiling, running = _predicted(probe, candidate)
        found = _enter_in_time(probe, candidate, reference, pace, (compiling, running), entrants, must=not entrants)
        (entrants if isinstance(found, Entrant) else refused).append(found)  # type: ignore[arg-type]
    first = ranked(entrants, pace)
    compile_s = {entrant.measurement.candidate.backend: entrant.compile_s for entrant in entrants}
    del entrants
    pace = Pace(begin, begin + task.budget_s)
    finals, late = _finalists(task, first, compile_s, reference, patch, pace)
    # Where there was no time for the subject itself, the patch has to tell by how much a backend is faster.
    told = {measurement.candidate.backend for measurement in finals}
    scaled = [_scaled(m, task) for m in first if m.candidate.backend not in told]
    right = sorted((*finals, *scaled), key=lambda m: m.seconds or math.inf)
    known = {measurement.candidate for measurement in scaled}
    late = [measurement for measurement in late if measurement.candidate not in known]
    return (*right, *late, *refused)


def offered(task: Task) -> list[Candidate]:
    """List backends and precisions, the one predicted to be fastest first."""
    listed = [
        Candidate(name, precision, task.threads)
        for name in task.backends
        for precision in precisions(task.policy, task.subject.dtype, task.device)
    ]
    return sorted(listed, key=lambda candidate: sum(_predicted(task, candidate)))


def _predicted(task: Task, candidate: Candidate) -> tuple[float, float]:
    """Predict the seconds of compiling, and of running the task's subject as one window."""
    size = (task.subject.images, task.subject.height, task.subject.width)
    return (
        predicted_compile_seconds(task.model, candidate.backend),
        predicted_image_seconds(task.model, candidate.backend, candidate.precision, size, candidate.threads),
    )


def _reference(task: Task) -> Tensor:
    source = drawn(task)
    run = reference_of(task.model)
    cut = grid(task.subject.height, task.subject.width, 0, task.model.geometry())
    tile = ArrayReader(source, task.model.image_channels[0]).read(cut[0])
    out_h, out_w = cut.output
    return run(tile)[:, :, :out_h, :out_w]


def _enter_in_time(
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
    if reason is None and not must and not pace.allows(entering_s + predicted[1] + timing_seconds(entrants)):
        reason = f"not measured: too little time to compile it and run it (about {entering_s:.1f} s)"
    if reason is not None:
        return Measurement(candidate, (0, 0), reason=reason)
    return pace.step(entering_s, lambda: enter(task, candidate, reference))


def _finalists(
    task: Task,
    first: Sequence[Measurement],
    compile_s: dict[str, float],
    reference: Tensor,
    patch: tuple[int, int],
    pace: Pace,
) -> tuple[list[Measurement], list[Measurement]]:
    """Time tiles, threads and batches of the leading backends on the subject itself, as far as there is time."""
    if not first or ((task.subject.height, task.subject.width) == patch and task.threads == 1):
        return [], []
    leading = [m for m in first if (m.seconds or math.inf) <= _FINALIST_FACTOR * (first[0].seconds or math.inf)]
    checked = None if task.model.geometry().global_ops and patch != _padded(task) else reference
    entrants: list[Entrant] = []
    refused: list[Measurement] = []
    for leader in leading[:_FINALISTS]:
        for candidate in _variants(task, leader.candidate):
            expected = (compile_s[candidate.backend], _expected_seconds(leader, task, candidate))
            found = _enter_in_time(task, candidate, checked, pace, expected, entrants)
            found = _unlike_alone(found, entrants) or found
            if isinstance(found, Measurement):
                refused.append(found)
                continue
            # What the small patch has shown holds where the larger one was not compared.
            kept = found.measurement
            if kept.levels is None:
                kept = replace(kept, levels=leader.levels, psnr_db=leader.psnr_db)
            entrants.append(replace(found, measurement=kept))
    return ranked(entrants, pace), refused


def _unlike_alone(found: Entrant | Measurement, entrants: Sequence[Entrant]) -> Measurement | None:
    """Refuse batches that give other pixels than the same windows one by one; None where there is nothing to refuse."""
    if isinstance(found, Measurement) or found.measurement.candidate.batch == 1:
        return None
    single = replace(found.measurement.candidate, batch=1)
    alone = next((entrant for entrant in entrants if entrant.measurement.candidate == single), None)
    if alone is not None and np.array_equal(alone.result, found.result):
        return None
    reason = "its batches give other pixels than single windows" if alone else "not measured: single windows were not"
    return replace(found.measurement, reason=reason)


def _variants(task: Task, leader: Candidate) -> list[Candidate]:
    """List tiles, threads and batches of a backend, the most promising ones first: what stays in the cache."""
    sizes = (task.tile,) if task.tile is not None else tiles(task.model, task.subject.height, task.subject.width)
    listed = []
    for tile in sorted(sizes, key=lambda t: (t == 0, -t)):
        cut = grid(task.subject.height, task.subject.width, tile, task.model.geometry())
        for workers, threads in thread_splits(leader.backend, task.threads):
            if workers > 1 and tile == 0:
                continue
            for batch in batches(task.model, leader.backend, task.device, cut):
                listed.append(replace(leader, tile=tile, workers=workers, threads=threads, batch=batch))
    return listed


def _expected_seconds(leader: Measurement, task: Task, candidate: Candidate) -> float:
    """Scale the patch's time to the windows that timing a candidate once would run."""
    cut = grid(task.subject.height, task.subject.width, candidate.tile, task.model.geometry())
    windows = windows_timed(task, candidate, cut)
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
