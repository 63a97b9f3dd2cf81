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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tilefuse.backends.pixels import LANES
from tilefuse.candidates import BATCH, Candidate
from tilefuse.measurement import Measurement
from tilefuse.options import CACHE_VARIABLE

# Goes up when a file of before would be misunderstood.
_FORMAT = 2
_MAX_BYTES = 1 << 20
_MAX_MEASUREMENTS = 200
_LARGEST_COUNT = (1 << 31) - 1
# Of seconds, and of bytes held for each byte of live activations: past what measuring gives.
_LONGEST_S, _LARGEST_FACTOR = 1e6, 100.0

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
    """Read the verdict on a question. A damaged or foreign file is ignored, with a warning."""
    path = folder / _name(key)
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return Found(None)
    except OSError as error:
        # Writing will fail as well, and warns then.
        return Found(None, f"the recorded choice {path} can't be read ({error.strerror}); it is ignored")
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError("it is too large")
        record = json.loads(data)
        if record["key"] != json.loads(_canonical(key)):
            raise ValueError("it answers another question")
        return Found(_parsed(record["verdict"], key))
    except KeyError as error:
        return _damaged(path, f"it has no {error}")
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        return _damaged(path, str(error))


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
        # Shown once, too.
        warnings.warn(f"tilefuse: {note}. Give another folder with cache_dir or {CACHE_VARIABLE}", stacklevel=2)
        return note
    return ""


def _damaged(path: Path, how: str) -> Found:
    note = f"the recorded choice {path} is damaged or foreign ({how}); it is ignored"
    # Python shows a warning of one text and place once.
    warnings.warn(f"tilefuse: {note}. `tilefuse warm` measures again and replaces it", stacklevel=3)
    return Found(None, note)


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


def _parsed(plain: Any, key: Key) -> Verdict:
    listed = plain["measurements"]
    if not isinstance(listed, list) or len(listed) > _MAX_MEASUREMENTS:
        raise ValueError("no list of measurements")
    found = Verdict(_count(plain["height"]), _count(plain["width"]), tuple(_measurement(m, key) for m in listed))
    # Latents have no window.
    if any(found.width and min(m.window) < 1 for m in found.right):
        raise ValueError("no window")
    if not found.right:
        raise ValueError("nobody may serve")
    return found


def _measurement(plain: Any, key: Key) -> Measurement:
    given = plain["candidate"]
    threads = key["threads"]
    if given["precision"] not in ("fp32", "bf16", "fp16") or given["backend"] not in key["backends"]:
        raise ValueError("no candidate")
    candidate = Candidate(
        given["backend"],
        given["precision"],
        _count(given["threads"], 1, threads),
        _count(given["workers"], 1, max(LANES, threads)),
        _count(given["tile"]),
        _count(given["batch"], 1, BATCH),
    )
    window: Sequence[Any] = plain["window"]
    reason = plain["reason"]
    if not (reason is None or isinstance(reason, str)) or len(window) != 2:
        raise ValueError("no measurement")
    # Half a surrogate pair can be read from JSON, and printed nowhere.
    (reason or "").encode()
    seconds, window_seconds = (_number(plain[name], 0.0, _LONGEST_S) for name in ("seconds", "window_seconds"))
    if 0.0 in (seconds, window_seconds) or (seconds is None) != (window_seconds is None):
        raise ValueError("no time")
    return Measurement(
        candidate,
        (_count(window[0]), _count(window[1])),
        seconds,
        window_seconds,
        _number(plain["levels"], 0.0, math.inf),
        _number(plain["psnr_db"], -math.inf, math.inf),
        _number(plain["memory_factor"], 1.0, _LARGEST_FACTOR),
        reason,
    )


def _count(value: Any, least: int = 0, most: int = _LARGEST_COUNT) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{value!r} is no count")
    return value


def _number(value: Any, least: float, most: float) -> float | None:
    if value is None:
        return None
    if value in ("inf", "-inf"):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{value!r} is no such number")
    return float(value)
