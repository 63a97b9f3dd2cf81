"""Collect the rows of every suite and write them as records when the session ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.records import Row, machine_folder, new_record

Keep = Callable[[Row], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --results."""
    parser.addoption("--results", type=Path, default=None, help="folder of the records; this machine's by default")


@pytest.fixture(scope="module")
def keep(request: pytest.FixtureRequest) -> Iterator[Keep]:
    """Give a function that keeps a row of the suite; bench_latency.py writes latency.json."""
    rows: list[Row] = []
    yield rows.append
    suite = request.module.__name__.rpartition("bench_")[2]
    if rows:
        folder = request.config.getoption("--results") or machine_folder()
        new_record(suite, rows).write(folder / f"{suite}.json")
