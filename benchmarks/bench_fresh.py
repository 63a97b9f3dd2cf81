"""Cold start and peak memory, each in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Keep
from benchmarks.records import Row

ROOT = Path(__file__).parents[1]
MODELS = ("espcn-x4", "compact-x4")
SIZE = ("1920", "1080")
BUDGETS = ("256MiB", "1GiB", "auto")


def fresh(*arguments: str) -> dict[str, float]:
    """Run `benchmarks.fresh` and read what it prints."""
    command = [sys.executable, "-m", "benchmarks.fresh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", MODELS)
def bench_cold_start(benchmark: Any, keep: Keep, model: str) -> None:
    """Report import, loading and the first image."""
    found: list[dict[str, float]] = []
    benchmark.pedantic(lambda: found.append(fresh("start", model)), rounds=3, iterations=1)
    middle = {name: sorted(each[name] for each in found)[1] for name in found[0]}
    row: Row = {"case": f"{model}: cold start", "median_ms": 1000 * sum(list(middle.values())[:4]), **middle}
    benchmark.extra_info.update(row)
    keep(row)


def bench_help(benchmark: Any, keep: Keep) -> None:
    """Report how long `tilefuse --help` takes."""
    script = "import sys; sys.argv = ['tilefuse', '--help']; from tilefuse.cli import main; main()"
    command = [sys.executable, "-c", script]
    benchmark.pedantic(lambda: subprocess.run(command, capture_output=True, check=True), rounds=5, iterations=1)
    keep({"case": "tilefuse --help", "median_ms": 1000 * benchmark.stats.stats.median})


@pytest.mark.parametrize("budget", [*BUDGETS, "torch eager, whole image"])
@pytest.mark.parametrize("model", MODELS)
def bench_memory(benchmark: Any, keep: Keep, model: str, budget: str) -> None:
    """Report peak growth under a budget, and of torch's eager mode on the whole image."""
    arguments = ("memory", model, *SIZE, budget) if budget in BUDGETS else ("memory-torch", model, *SIZE)
    found: list[dict[str, float]] = []
    benchmark.pedantic(lambda: found.append(fresh(*arguments)), rounds=1, iterations=1)
    row: Row = {"case": f"{model} {'x'.join(SIZE)} in {budget}", "median_ms": 1000 * found[0]["seconds"], **found[0]}
    benchmark.extra_info.update(row)
    keep(row)
