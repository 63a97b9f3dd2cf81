"""What tiling costs: the same backend on the whole image and in tiles, in turns."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

import tilefuse
from benchmarks.conftest import Keep
from benchmarks.records import Row
from benchmarks.replay import REPLAY, replayed_timer
from tilefuse.planner import Plan
from tilefuse.sample import sample_picture
from tilefuse.timing import Timing, interleave

TILES = (0, 512, 256, 128, 64)
EDGE, ROUNDS = 1024, 7
NETS = ("espcn-x2", "compact-x4")


@cache
def measured(net: str) -> tuple[dict[int, Plan], dict[str, list[float]]]:
    """Time a net with every tile."""
    image = sample_picture(EDGE, EDGE)
    engines = {tile: tilefuse.load(net, tile=tile, precision="fp32", measure_seconds=0) for tile in TILES}
    plans = {tile: engine.plan(EDGE, EDGE) for tile, engine in engines.items()}
    for engine in engines.values():
        engine(image)
    calls = {str(tile): lambda engine=engine: engine(image) for tile, engine in engines.items()}  # type: ignore[misc]
    return plans, interleave(calls, rounds=ROUNDS, budget_s=40)


@pytest.mark.benchmark(timer=replayed_timer)
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("net", NETS)
def bench_tiling(benchmark: Any, keep: Keep, net: str, tile: int) -> None:
    """Report a tile: time, and share of the image's pixels that are computed more than once."""
    plans, seconds = measured(net)
    plan, whole = plans[tile], Timing.of(seconds["0"]).median_s
    timing = Timing.of(seconds[str(tile)])
    row: Row = {
        "case": f"{net} {EDGE}x{EDGE} tile {tile or 'whole'}",
        "backend": plan.backend,
        "windows": plan.windows,
        "computed": plan.windows * plan.window[0] * plan.window[1] / EDGE**2,
        "median_ms": 1000 * timing.median_s,
        "of_whole": timing.median_s / whole,
    }
    benchmark.group = net
    benchmark.extra_info.update(row)
    REPLAY.play(benchmark, seconds[str(tile)])
    keep(row)
