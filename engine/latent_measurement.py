"""Measure who draws images from latents best: every backend and precision on one full batch."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.backends import registry
from tilefuse.backends.base import Session
from tilefuse.calibration import compare
from tilefuse.candidates import Candidate
from tilefuse.cost_model import predicted_compile_seconds, predicted_seconds
from tilefuse.entrants import refusal
from tilefuse.errors import BackendError, DeviceError, ModelError
from tilefuse.generation import BATCH, draw, latent_inputs
from tilefuse.measurement import offered
from tilefuse.pacing import Pace, ranked, timing_seconds
from tilefuse.tasks import Entrant, Measurement, Subject, Task
from tilefuse.timing import timed

# All that can be asked of a network without free sizes.
LATENTS = Subject(BATCH, 0, 0, "uint8")


def measure_latents(task: Task) -> tuple[Measurement, ...]:
    """Measure the candidates on a batch of random latents, the fastest right one first, those refused last.

    However short the time, one is measured; only that one may take longer than the budget.

    Raises:
        ModelError: the network takes no latent.
    """
    begin = time.perf_counter()
    pace = Pace(begin, begin + task.budget_s)
    model = task.model
    inputs = latent_inputs(model, task.subject.images, seed=0, label=None)
    if model.graph is None:
        raise ModelError(f"{model.name} has no graph to compare with")
    low, high = model.value_range
    reference = ((model.graph.evaluate(*inputs)[0] - low) / (high - low)).to(torch.float32)
    shapes = [tuple(x.shape) for x in inputs]
    entrants: list[Entrant] = []
    refused: list[Measurement] = []
    for candidate in offered(task):
        compiling = predicted_compile_seconds(model, candidate.backend)
        running = predicted_seconds(model, candidate.backend, candidate.precision, shapes, candidate.threads)
        reason = refusal(task, candidate)
        needed = compiling + 2 * running + timing_seconds(entrants)
        if reason is None and entrants and not pace.allows(needed):
            reason = pace.refusal(needed)
        if reason is not None:
            refused.append(Measurement(candidate, (0, 0), reason=reason))
            continue
        found = pace.step(compiling + running, lambda c=candidate: _entered(task, c, inputs, reference))  # type: ignore[misc]
        (entrants if isinstance(found, Entrant) else refused).append(found)  # type: ignore[arg-type]
    return (*ranked(entrants, pace), *refused)


def _entered(task: Task, candidate: Candidate, inputs: list[Tensor], reference: Tensor) -> Entrant | Measurement:
    """Compile a candidate, draw once and compare; a measurement says why it does not take part."""
    model, entered = task.model, Measurement(candidate, (0, 0))
    sessions: list[Session] = []
    drawn: list[NDArray[np.uint8]] = []

    def compile_it() -> None:
        shapes = [tuple(x.shape) for x in inputs]
        backend = registry.get(candidate.backend)
        precision, threads = candidate.precision, candidate.threads
        sessions.append(backend.compile(model, shapes, device=task.device, precision=precision, threads=threads))

    def run() -> None:
        drawn[:] = [draw(model, lambda _: sessions[0], inputs)]

    try:
        compile_s, first_s = timed(compile_it), timed(run)
    except (BackendError, DeviceError, ModelError, MemoryError) as error:
        return replace(entered, reason=f"can't serve: {error}")
    difference = compare(drawn[0], reference, candidate.precision, forced=task.policy not in ("auto", "fp32"))
    entered = replace(entered, levels=difference.levels, psnr_db=difference.psnr_db, reason=difference.reason)
    return entered if difference.reason is not None else Entrant(entered, run, 1, 1.0, compile_s, first_s, drawn[0])
