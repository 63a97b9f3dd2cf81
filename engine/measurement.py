"""Measure candidates on this machine: each compiled, checked against fp32 torch and timed beside the others.

First every backend and precision on a patch, which also checks it; then, for those in front, tiles, threads and
batches on as much of the picture as the time allows. All within a budget of seconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from tilefuse.calibration import probe_size, reference_of
from tilefuse.candidates import Candidate, precisions
from tilefuse.cost_model import predicted_compile_seconds, predicted_image_seconds
from tilefuse.entrants import drawn, enter_in_time
from tilefuse.finals import finals, scaled
from tilefuse.memory import ArrayReader
from tilefuse.pacing import Pace, ranked
from tilefuse.tasks import Entrant, Measurement, Subject, Task, measured_table
from tilefuse.tiling import grid

__all__ = ["Measurement", "Subject", "Task", "measure", "measured_table", "offered"]

# The patch of the first stage, and the share of the time that stage may take.
_PROBE_SHARE, _PROBE_FLOPS_A_SECOND = 0.05, 100e9
# However short the time: on a patch of 32 pixels a bfloat16 passed that misses the level on 160.
_LEAST_PROBE_FLOPS = 10e9
_FIRST_STAGE_SHARE = 0.6


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
        max(_LEAST_PROBE_FLOPS, _PROBE_SHARE * task.budget_s * _PROBE_FLOPS_A_SECOND),
    )
    probe = replace(task, subject=replace(task.subject, height=patch[0], width=patch[1]))
    reference = _reference(probe)
    pace = Pace(begin, begin + _FIRST_STAGE_SHARE * task.budget_s)
    entrants: list[Entrant] = []
    refused: list[Measurement] = []
    for candidate in offered(task):
        compiling, running = _predicted(probe, candidate)
        found = enter_in_time(probe, candidate, reference, pace, (compiling, running), entrants, must=not entrants)
        (entrants if isinstance(found, Entrant) else refused).append(found)  # type: ignore[arg-type]
    first = ranked(entrants, pace)
    compile_s = {entrant.measurement.candidate.backend: entrant.compile_s for entrant in entrants}
    del entrants
    pace = Pace(begin, begin + task.budget_s)
    timed, late = finals(task, first, compile_s, reference, patch, pace)
    told = {measurement.candidate.backend for measurement in timed}
    estimated = [_estimated(m, first, timed, probe, task) for m in first if m.candidate.backend not in told]
    right = sorted((*timed, *estimated), key=lambda m: m.seconds or math.inf)
    known = {measurement.candidate for measurement in estimated}
    late = [measurement for measurement in late if measurement.candidate not in known]
    return (*right, *late, *refused)


def _estimated(
    found: Measurement, first: Sequence[Measurement], timed: Sequence[Measurement], probe: Task, task: Task
) -> Measurement:
    """Estimate who was timed on the patch only: as much slower as there than the fastest there that saw the picture."""
    whole = {(m.candidate.backend, m.candidate.precision): m.seconds for m in reversed(timed)}
    for other in first:
        seconds = whole.get((other.candidate.backend, other.candidate.precision))
        if seconds and other.seconds and found.seconds:
            return replace(found, seconds=seconds * found.seconds / other.seconds)
    return scaled(found, probe.subject, task.subject)


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
