"""The second stage of measuring: the leading backends, with tiles, threads and batches, on the picture itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from math import sqrt

import numpy as np
from torch import Tensor

from tilefuse.candidates import Candidate, batches, thread_splits, tiles
from tilefuse.entrants import enter_in_time, windows_timed
from tilefuse.pacing import Pace, ranked
from tilefuse.tasks import Entrant, Measurement, Subject, Task
from tilefuse.tiling import grid

# Backends whose tiles, threads and batches are tried: those this close to the fastest on the patch.
_FINALIST_FACTOR, _FINALISTS = 1.3, 3
# How often each of them is to run a picture that there is no time to run whole. The first run warms up, and may take as
# long as two: memory is mapped at its first use (ncnn, RRDB at 250 x 250: 830,000 pages, 3.1 s, then 2.4 s).
_RUNS = 4
# A picture hardly larger than the patch tells nothing new.
_LEAST_GROWTH = 1.5


def finals(
    task: Task,
    first: Sequence[Measurement],
    compile_s: Mapping[str, float],
    reference: Tensor,
    patch: tuple[int, int],
    pace: Pace,
) -> tuple[list[Measurement], list[Measurement]]:
    """Time tiles, threads and batches of the leading backends on as much of the picture as there is time for.

    `first` are the measurements of the patch, the fastest first, `compile_s` what each backend took to compile.
    Returns who was timed, by seconds for the whole picture, and who was not.
    """
    if not first or ((task.subject.height, task.subject.width) == patch and task.threads == 1):
        return [], []
    leading = [m for m in first if (m.seconds or math.inf) <= _FINALIST_FACTOR * (first[0].seconds or math.inf)]
    leading = leading[:_FINALISTS]
    part = _affordable(task, leading, compile_s, patch, pace)
    checked = None if task.model.geometry().global_ops and patch != _padded(part) else reference
    entrants: list[Entrant] = []
    refused: list[Measurement] = []
    for leader, candidate in _in_turn(part, leading):
        expected = (compile_s[candidate.backend], _expected_seconds(leader, part, candidate))
        found = enter_in_time(part, candidate, checked, pace, expected, entrants)
        found = _unlike_alone(found, entrants) or found
        if isinstance(found, Measurement):
            refused.append(found)
            continue
        # What the small patch has shown holds where the larger one was not compared.
        kept = found.measurement
        if kept.levels is None:
            kept = replace(kept, levels=leader.levels, psnr_db=leader.psnr_db)
        entrants.append(replace(found, measurement=kept))
    return [scaled(m, part.subject, task.subject) for m in ranked(entrants, pace)], refused


def scaled(measurement: Measurement, measured: Subject, subject: Subject) -> Measurement:
    """Estimate the time of a subject from that of another one."""
    share = subject.height * subject.width / (measured.height * measured.width)
    return replace(measurement, seconds=(measurement.seconds or 0.0) * share)


def _affordable(
    task: Task, leading: Sequence[Measurement], compile_s: Mapping[str, float], patch: tuple[int, int], pace: Pace
) -> Task:
    """Cut the picture to what all who lead can run in the time that is left: small patches favour some libraries."""
    once = sum(min(_expected_seconds(m, task, c) for c in _variants(task, m.candidate)) for m in leading)
    left = pace.left_s() - sum(compile_s[m.candidate.backend] for m in leading)
    share = left / (_RUNS * once) if once else 1.0
    if share >= 1 or share * task.subject.height * task.subject.width < _LEAST_GROWTH * patch[0] * patch[1]:
        return task
    height, width = (int(edge * sqrt(share)) for edge in (task.subject.height, task.subject.width))
    return replace(task, subject=replace(task.subject, height=height, width=width))


def _in_turn(task: Task, leading: Sequence[Measurement]) -> Iterator[tuple[Measurement, Candidate]]:
    """Give the first variant of every leader, then the second ones: time that runs out leaves none unseen."""
    for row in zip_longest(*([(m, c) for c in _variants(task, m.candidate)] for m in leading)):
        yield from (pair for pair in row if pair is not None)


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
    """List tiles, threads and batches of a backend: the largest tile that stays in the cache, the whole, the others."""
    size = task.subject.height, task.subject.width
    sizes = (task.tile,) if task.tile is not None else tiles(task.model, *size, task.device)
    largest = max(sizes)
    listed = []
    for tile in sorted(sizes, key=lambda t: (t != largest, t != 0, -t)):
        cut = grid(task.subject.height, task.subject.width, tile, task.model.geometry())
        for workers, threads in thread_splits(leader.backend, task.threads, task.device):
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


def _padded(task: Task) -> tuple[int, int]:
    found = task.model.geometry()
    return (
        found.y.padded(task.subject.height, found.minimum_px),
        found.x.padded(task.subject.width, found.minimum_px),
    )
