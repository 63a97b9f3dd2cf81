"""Options of `load`, checked."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from platformdirs import user_cache_path

from tilefuse.errors import UsageError
from tilefuse.machine import parse_bytes
from tilefuse.planner import Request

CACHE_VARIABLE = "TILEFUSE_CACHE_DIR"
# How long choosing may measure.
MEASURE_SECONDS = 10.0

PrecisionPolicy = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Options:
    """What the user asked for, with every value known to exist; `request` is what the planner reads of it.

    `measure_seconds` is how long choosing may measure, 0 for never; `cache_dir` is where choices are recorded.
    """

    device: str
    backend: str
    precision: PrecisionPolicy
    request: Request
    cache_dir: Path
    measure_seconds: float = MEASURE_SECONDS

    @classmethod
    def parse(
        cls,
        device: str,
        backend: str,
        precision: str,
        tile: int | str,
        halo: int | str,
        schedule: str,
        memory: int | str | None,
        cache_dir: str | os.PathLike[str] | None = None,
        measure_seconds: float = MEASURE_SECONDS,
    ) -> Options:
        """Check the options of `load`.

        Raises:
            UsageError: naming the option, what was given and what is accepted.
        """
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise UsageError(f"device: {device!r} is none; give auto, cpu, cuda or cuda:N")
        if precision not in ("auto", "fp32", "bf16", "fp16"):
            raise UsageError(f"precision: {precision!r} is none; give auto, fp32, bf16 or fp16")
        if schedule not in ("auto", "whole", "windows", "rows"):
            raise UsageError(f"schedule: {schedule!r} is none; give auto, whole, windows or rows")
        tile_px = _pixels("tile", tile, "auto")
        if schedule == "whole":
            if tile_px:
                raise UsageError(f"schedule whole and tile {tile} contradict each other; leave one out")
            tile_px = 0
        if schedule == "windows" and tile_px == 0:
            raise UsageError("schedule windows and tile 0 (the whole image) contradict each other; leave one out")
        if schedule == "rows":
            backend, precision, measure_seconds = _for_rows(backend, precision, tile, halo), "fp32", 0.0
        request = Request(
            tile=tile_px,
            halo_px=_pixels("halo", halo, "exact"),
            memory=0 if memory is None else parse_bytes(memory),
            windows_only=schedule == "windows",
            rows=schedule == "rows",
        )
        return cls(
            device,
            backend,
            cast(PrecisionPolicy, precision),
            request,
            cache_folder(cache_dir),
            checked_seconds(measure_seconds),
        )


def checked_seconds(measure_seconds: float) -> float:
    """Return a time to measure in, when it is one. Raises UsageError for what is negative, endless or no number."""
    if not 0 <= measure_seconds < math.inf:
        raise UsageError(f"measure_seconds: {measure_seconds} is no time; give seconds, 0 for never")
    return measure_seconds


def _for_rows(backend: str, precision: str, tile: int | str, halo: int | str) -> str:
    """Return the backend that the row schedule has; nothing else that is asked for may contradict it."""
    wrong = [
        f"{option} {given}"
        for option, given, accepted in (
            ("backend", backend, ("auto", "torch_eager")),
            ("precision", precision, ("auto", "fp32")),
            ("halo", halo, ("exact",)),
        )
        if given not in accepted
    ]
    if tile == 0:
        wrong.append("tile 0 (the whole image)")
    if wrong:
        raise UsageError(
            f"schedule rows computes exact fp32 rows in torch_eager, and contradicts {', '.join(wrong)}; leave one out"
        )
    return "torch_eager"


def cache_folder(asked: str | os.PathLike[str] | None) -> Path:
    """Return the folder that choices are recorded in: the one asked for, TILEFUSE_CACHE_DIR, or the user's cache.

    Raises:
        UsageError: the name is empty.
    """
    named = os.environ.get(CACHE_VARIABLE) if asked is None else os.fspath(asked)
    if named is not None:
        if not named:
            raise UsageError(f"cache_dir (or {CACHE_VARIABLE}): the name is empty; give a folder")
        return Path(named) / "verdicts"
    return user_cache_path("tilefuse", appauthor=False) / "verdicts"


def _pixels(option: str, value: int | str, word: str) -> int | None:
    """Read a number of pixels; the word stands for None."""
    if value == word:
        return None
    if isinstance(value, bool) or not str(value).isdecimal():
        raise UsageError(f"{option}: {value!r} is neither {word!r} nor a number of input pixels (0 or more)")
    return int(value)
