"""Measure who draws images from latents best: every backend and precision on one full batch."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from tilefuse.backends import registry
from tilefuse.calibration import compare
from tilefuse.cost_model import predicted_compile_seconds
from tilefuse.errors import BackendError, DeviceError, ModelError
from tilefuse.generation import BATCH, draw, latent_inputs
from tilefuse.measurement import Entrant, Measurement, Subject, Task, offered, ranked, refusal

# All that can be asked of a network without free sizes.
LATENTS = Subject(BATCH, 0, 0, "uint8")


def measure_latents(task: Task) -> tuple[Measurement, ...]:
    """Measure the candidates on a batch of random latents, the fastest right one first, those refused last.

    Raises:
        ModelError: the network takes no latent.
    """
    deadline = time.perf_counter() + task.budget_s
    model = task.model
    inputs = latent_inputs(model, task.subject.images, seed=0, label=None)
    if model.graph is None:
        raise ModelError(f"{model.name} has no graph to compare with")
    low, high = model.value_range
    reference = (model.graph.evaluate(*inputs)[0] - low) / (high - low)
    shapes = [tuple(x.shape) for x in inputs]
    entrants: list[Entrant] = []
    refused: list[Measurement] = []
    for candidate in offered(task):
        entered = Measurement(candidate, (0, 0), reason=refusal(task, candidate))
        compiling = predicted_compile_seconds(model, candidate.backend)
        if entered.reason is None and entrants and time.perf_counter() + compiling > deadline:
            entered = replace(entered, reason=f"not measured: too little time to compile it (about {compiling:.1f} s)")
        if entered.reason is not None:
            refused.append(entered)
            continue
        try:
            session = registry.get(candidate.backend).compile(
                model, shapes, device=task.device, precision=candidate.precision, threads=candidate.threads
            )
            drawn = draw(model, lambda _, session=session: session, inputs)  # type: ignore[misc]
        except (BackendError, DeviceError, ModelError, MemoryError) as error:
            refused.append(replace(entered, reason=f"can't serve: {error}"))
            continue
        forced = task.policy not in ("auto", "fp32")
        found = compare(drawn, reference.to(torch.float32), candidate.precision, forced=forced)
        entered = replace(entered, levels=found.levels, psnr_db=found.psnr_db, reason=found.reason)
        if found.reason is not None:
            refused.append(entered)
            continue
        entrants.append(
            Entrant(entered, lambda session=session: draw(model, lambda _: session, inputs), 1, 1.0)  # type: ignore[misc]
        )
    return (*sorted(ranked(entrants, deadline), key=lambda m: m.seconds or math.inf), *refused)
