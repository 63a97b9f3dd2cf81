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


@dataclass(frozen=True)
class Told:
    """A measurement for people: time, difference from fp32 torch, and whether it serves or why not."""

    candidate: str
    time: str
    difference: str
    verdict: str


TITLES = Told("candidate", "time", "off fp32 by", "verdict")


def told(measurements: Sequence[Measurement]) -> tuple[Told, ...]:
    """Write measurements for people, in their order: the first one serves unless it says why not."""
    return tuple(
        Told(
            str(m.candidate),
            "" if m.seconds is None else f"{m.seconds * 1000:.1f} ms",
            _difference(m),
            m.reason or ("chosen" if place == 0 else _behind(m, measurements[0])),
        )
        for place, m in enumerate(measurements)
    )


def measured_table(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """Write measurements as lines of a table with titles, for a terminal; none of none."""
    rows = [TITLES, *told(measurements)] if measurements else []
    name, time, difference = (
        max((len(getattr(row, column)) for row in rows), default=0) for column in ("candidate", "time", "difference")
    )
    return tuple(f"{r.candidate:{name}}  {r.time:>{time}}  {r.difference:{difference}}  {r.verdict}" for r in rows)


def _difference(m: Measurement) -> str:
    if m.levels is None or m.psnr_db is None or not math.isfinite(m.levels):
        return ""
    if math.isinf(m.psnr_db):
        return "nothing"
    levels = f"{m.levels:.2g}"
    return f"{levels} level{'' if levels == '1' else 's'}, {m.psnr_db:.1f} dB"


def _behind(m: Measurement, first: Measurement) -> str:
    return f"slower, {m.seconds / first.seconds:.2f}x" if m.seconds and first.seconds else "slower"
