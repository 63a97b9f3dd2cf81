"""Time against image size: every backend in every precision beside the other libraries, in turns, in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import tilefuse
from benchmarks.conftest import Keep
from benchmarks.nets import CASES, Case
from benchmarks.numbers import quality, title
from benchmarks.peers import PEERS, Direct
from benchmarks.records import Row
from benchmarks.replay import REPLAY, replayed_timer
from tilefuse.backends.registry import BACKENDS
from tilefuse.bench import measure_ceilings, work_of
from tilefuse.errors import BackendError
from tilefuse.timing import Timing, interleave

EDGES = {"espcn-x2": (64, 128, 256, 512, 1024), "compact-x4": (128, 256)}
ENGINES = ("default", *(f"{backend} {precision}" for backend in BACKENDS for precision in ("fp32", "bf16")))
NAMES = (*(f"tilefuse {name}" for name in ENGINES), *(peer.name for peer in PEERS))
ROUNDS, SECONDS = 9, 20.0
Call = Callable[[], np.ndarray[Any, Any]]

_NETS = {case.name: case for case in CASES}
GROUPS = tuple(replace(_NETS[name], size=(edge, edge)) for name, edges in EDGES.items() for edge in edges)


@cache
def measured(case: Case) -> tuple[dict[str, Row], dict[str, list[float]], dict[str, str]]:
    """Time a net at a size in all ways: rows, durations, and reasons of those that can't serve."""
    image = case.image()
    ceilings = measure_ceilings(("fp32", "bf16"))
    calls: dict[str, Call] = {}
    precision_of: dict[str, str] = {}
    refused: dict[str, str] = {}
    for name in ENGINES:
        try:
            calls[f"tilefuse {name}"], precision_of[f"tilefuse {name}"] = _engine(case, name, image)
        except BackendError as error:
            refused[f"tilefuse {name}"] = str(error)
    for peer in PEERS:
        calls[peer.name] = Direct(case, peer.prepare(case.build(), case.tensor(image)), image)
        precision_of[peer.name] = peer.precision
    results = {name: call() for name, call in calls.items()}
    seconds = interleave(calls, rounds=ROUNDS, drop_factor=4, budget_s=SECONDS)
    work = work_of(tilefuse.load(case.bundled or case.build(), measure_seconds=0).model, image)
    rows = {}
    for name, taken in seconds.items():
        timing = Timing.of(taken)
        ceiling = ceilings["bf16" if precision_of[name] == "bf16" else "fp32"]
        gflops, gbs = ((count or 0) / timing.median_s / 1e9 for count in (work.flops, work.bytes))
        rows[name] = {
            "case": f"{title(case)} | {name}",
            "net": case.name,
            "name": name,
            "precision": precision_of[name],
            "input_px": work.input_px,
            "median_ms": 1000 * timing.median_s,
            "p20_ms": 1000 * timing.p20_s,
            "p80_ms": 1000 * timing.p80_s,
            "rounds": timing.rounds,
            "input_mps": work.input_px / 1e6 / timing.median_s,
            "output_mps": work.output_px / 1e6 / timing.median_s,
            "gflops": gflops,
            "gbs": gbs,
            "flops_a_byte": (work.flops or 0) / (work.bytes or 1),
            "matmul_gflops": ceiling.matmul_gflops,
            "copy_gbs": ceiling.copy_gbs,
            "matmul_share": gflops / ceiling.matmul_gflops,
            **quality(results[name], results["torch eager"]),
        }
    return rows, seconds, refused


def _engine(case: Case, name: str, image: np.ndarray[Any, Any]) -> tuple[Call, str]:
    backend, _, precision = ("auto", "", "auto") if name == "default" else name.partition(" ")
    engine = tilefuse.load(case.bundled or case.build(), backend=backend, precision=precision, measure_seconds=0)
    height, width = image.shape[:2]
    if name == "default":
        engine.warm(height, width, channels=case.channels, seconds=10)
    engine(image)
    return lambda: engine(image), engine.plan(height, width, channels=case.channels).precision


@pytest.mark.benchmark(timer=replayed_timer)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", GROUPS, ids=title)
def bench_latency(benchmark: Any, keep: Keep, case: Case, name: str) -> None:
    """Report one way of running one net at one size."""
    rows, seconds, refused = measured(case)
    if name in refused:
        pytest.skip(refused[name])
    benchmark.group = title(case)
    benchmark.extra_info.update(rows[name])
    REPLAY.play(benchmark, seconds[name])
    keep(rows[name])
