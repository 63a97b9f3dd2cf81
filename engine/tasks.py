"""What is measured, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilefuse.candidates import Candidate
from tilefuse.memory import Pixels
from tilefuse.model import Model


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
    """A compiled candidate: `run` runs some windows of the picture, `scale` times which is the whole subject.

    Compiling took `compile_s`, and the first run `first_s`; `result` is what it gave.
    """

    measurement: Measurement
    run: Callable[[], object]
    windows: int
    scale: float
    compile_s: float
    first_s: float
    result: Pixels


def measured_table(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """Write measurements for people: candidate, time, difference, verdict."""
    lines = []
    for place, m in enumerate(measurements):
        told = [] if m.seconds is None else [f"{m.seconds * 1000:.1f} ms"]
        if m.reason is None and m.levels is not None and m.psnr_db is not None:
            unit = "level" if f"{m.levels:.2g}" == "1" else "levels"
            told.append(f"{m.levels:.2g} {unit}")
            told.append("equal" if math.isinf(m.psnr_db) else f"{m.psnr_db:.1f} dB")
        told.append(m.reason or ("chosen" if place == 0 else "slower"))
        lines.append(f"{m.candidate}: {', '.join(told)}")
    return tuple(lines)
