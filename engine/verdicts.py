"""Verdicts on disk: what was measured for a model on this machine, one JSON file for each question.

Files are written beside and renamed, so processes never see half of one; two that measure the same write the same
place, and the later one stands. A file whose question is not the one asked, or that can't be read, is ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tilefuse.candidates import Candidate
from tilefuse.measurement import Measurement
from tilefuse.options import CACHE_VARIABLE

# Goes up when a file of before would be misunderstood.
_FORMAT = 2
_MAX_BYTES = 1 << 20
_MAX_MEASUREMENTS = 200

Key = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What was measured for a question, the fastest right candidate first, and the image size it was measured at."""

    height: int
    width: int
    measurements: tuple[Measurement, ...]

    @property
    def right(self) -> tuple[Measurement, ...]:
        """Those that may serve, the fastest first."""
        return tuple(m for m in self.measurements if m.reason is None and m.seconds is not None)


@dataclass(frozen=True)
class Found:
    """A verdict, or none, and what there is to say about the file."""

    verdict: Verdict | None
    note: str = ""


def recall(folder: Path, key: Key) -> Found:
    """Read the verdict on a question."""
    path = folder / _name(key)
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return Found(None)
    except OSError as error:
        return Found(None, f"the recorded choice {path} can't be read ({error.strerror}); it is ignored")
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError("it is too large")
        record = json.loads(data)
        if record["key"] != json.loads(_canonical(key)):
            raise ValueError("it answers another question")
        return Found(_parsed(record["verdict"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return Found(None, f"the recorded choice {path} is damaged or foreign ({error}); it is ignored")


def record(folder: Path, key: Key, verdict: Verdict) -> str:
    """Write the verdict on a question; return what went wrong, or nothing. The work goes on without a cache."""
    content = {"key": json.loads(_canonical(key)), "verdict": _plain(verdict)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(descriptor, "w") as stream:
                json.dump(content, stream, indent=1, allow_nan=False)
            os.replace(temporary, folder / _name(key))
        except BaseException:
            # An interrupt as well leaves nothing behind.
            os.unlink(temporary)
            raise
    except OSError as error:
        note = f"the choice can't be recorded in {folder} ({error.strerror or error}); it will be measured again"
        # Python shows a warning of one text and place once.
        warnings.warn(f"tilefuse: {note}. Give another folder with cache_dir or {CACHE_VARIABLE}", stacklevel=2)
        return note
    return ""


def _name(key: Key) -> str:
    return hashlib.blake2b(_canonical(key).encode(), digest_size=16).hexdigest() + ".json"


def _canonical(key: Key) -> str:
    return json.dumps({"format": _FORMAT, **key}, sort_keys=True)


def _plain(verdict: Verdict) -> dict[str, Any]:
    plain = asdict(verdict)
    for measured in plain["measurements"]:
        # JSON knows no infinity; a result equal to the reference has no other PSNR.
        for name in ("psnr_db", "levels"):
            if measured[name] is not None and math.isinf(measured[name]):
                measured[name] = "inf" if measured[name] > 0 else "-inf"
    return plain


def _parsed(plain: Any) -> Verdict:
    listed = plain["measurements"]
    if not isinstance(listed, list) or len(listed) > _MAX_MEASUREMENTS:
        raise ValueError("no list of measurements")
    return Verdict(_count(plain["height"]), _count(plain["width"]), tuple(_measurement(entry) for entry in listed))


def _measurement(plain: Any) -> Measurement:
    given = plain["candidate"]
    precision = given["precision"]
    if precision not in ("fp32", "bf16", "fp16") or not isinstance(given["backend"], str):
        raise ValueError("no candidate")
    candidate = Candidate(
        given["backend"],
        precision,
        _count(given["threads"], 1),
        _count(given["workers"], 1),
        _count(given["tile"]),
        _count(given["batch"], 1),
    )
    window: Sequence[Any] = plain["window"]
    reason = plain["reason"]
    if not (reason is None or isinstance(reason, str)) or len(window) != 2:
        raise ValueError("no measurement")
    numbers = {
        field.name: _number(plain[field.name])
        for field in fields(Measurement)
        if field.name not in ("candidate", "window", "reason")
    }
    if any(numbers[name] is not None and not 0 < numbers[name] < math.inf for name in ("seconds", "window_seconds")):
        raise ValueError("no time")
    return Measurement(candidate, (_count(window[0]), _count(window[1])), reason=reason, **numbers)


def _count(value: Any, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
        raise ValueError(f"{value!r} is no count")
    return value


def _number(value: Any) -> Any:
    if value is None:
        return None
    number = float(value)
    if math.isnan(number):
        raise ValueError("a number is none")
    return number
