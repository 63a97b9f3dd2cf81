"""Records of measurements: JSON files under benchmarks/results/<machine>/, rewritten whole after every row."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tilefuse.machine import cpu_name, cpu_threads

RESULTS = Path(__file__).with_name("results")
Row = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One suite on one machine. Every row has a unique `case` and, where it was timed, a `median_ms`."""

    suite: str
    machine: str
    date: str
    rows: tuple[Row, ...]

    def write(self, path: Path) -> None:
        """Write the record; the file is whole or as it was."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(self.__dict__, indent=2) + "\n")
        os.replace(part, path)


def new_record(suite: str, rows: Sequence[Row] = ()) -> Record:
    """Begin a record of today on this machine."""
    # Reading and comparing records needs no torch, and starts at once without it.
    from tilefuse.bench import machine_name

    return Record(suite, machine_name(), datetime.now(UTC).date().isoformat(), tuple(rows))


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        SystemExit: the file is missing or is no record; the message says which.
    """
    try:
        found = json.loads(path.read_text())
        record = Record(found["suite"], found["machine"], found["date"], tuple(found["rows"]))
        _ = [row["case"] for row in record.rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: is no record of measurements ({error!r})") from error
    return record


def machine_folder() -> Path:
    """Return the folder of this machine's results, named after its processors."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\(\w+\)", "", cpu_name().lower()))
    kept = [word for word in words if word not in ("amd", "intel", "cpu", "processor")]
    return RESULTS / "-".join(["cpu", str(cpu_threads()), "core", *(kept or ["unknown"])])
