"""The default engine against every other library called directly on the whole image, interleaved in one process.

python -m benchmarks.numbers [--json FILE] [--only NAME ...] [--resume] [--rounds N] [--seconds S]

Every call goes from an 8-bit image to an 8-bit image (or from a seed to images). A peer counts as right where its
result has at least 50 dB PSNR to fp32 torch and differs by at most one level: the engine's own rule for leaving fp32.
The rows are written as they are done; --resume leaves out those that the file has.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import tilefuse
from benchmarks.nets import CASES, Case
from benchmarks.peers import PEERS, Direct, Peer
from benchmarks.records import Record, Row, machine_folder, new_record, read_record
from tilefuse.latent_measurement import LATENTS
from tilefuse.machine import cpu_threads
from tilefuse.measurement import Subject
from tilefuse.quality import max_levels, psnr
from tilefuse.selection import Choices
from tilefuse.timing import Timing, interleave, rested, timed

ENGINES = {"tilefuse": "auto", "tilefuse fp32": "fp32"}
DROP_FACTOR = 1.8
MIN_DB, MAX_LEVELS = 50.0, 1.0
NOISE = 0.03

Call = Callable[[], NDArray[np.uint8]]


def main() -> None:
    """Measure, write and print a line a case and the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=machine_folder() / "numbers.json")
    parser.add_argument(
        "--only", nargs="*", default=None, metavar="NAME", help="nets to measure, for instance espcn-x4"
    )
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=20.0, help="a case's time for its rounds")
    options = parser.parse_args()
    unknown = set(options.only or ()) - {case.name for case in CASES}
    if unknown:
        parser.error(f"there is no net {', '.join(unknown)}; choose of {', '.join({c.name: 0 for c in CASES})}")
    cases = [case for case in CASES if options.only is None or case.name in options.only]
    record = read_record(options.json) if options.resume and options.json.exists() else new_record("numbers")
    for case in cases:
        if title(case) in {row["case"] for row in record.rows}:
            continue
        row = measure(case, PEERS, rounds=options.rounds, budget_s=options.seconds)
        record = Record(record.suite, record.machine, record.date, (*record.rows, row))
        record.write(options.json)
        print(line(row), flush=True)
    print(summary(record.rows))


def title(case: Case) -> str:
    """Name a case for people and for comparison."""
    return f"{case.name} {case.shown}"


def measure(case: Case, peers: Sequence[Peer], *, rounds: int, budget_s: float) -> Row:
    """Measure the engines and the peers on a case."""
    torch.set_num_threads(cpu_threads())
    image = case.image()
    begin = time.perf_counter()
    engines = {name: _engine(case, precision) for name, precision in ENGINES.items()}
    choices = {name: _choose(engine, case) for name, engine in engines.items()}
    calls: dict[str, Call] = {name: _engine_call(engine, case, image) for name, engine in engines.items()}
    first_s = {name: timed(call) for name, call in calls.items()}
    expected = Direct(case, _eager(case), image)()
    refused: dict[str, str] = {}
    directs: dict[str, Direct] = {}
    for peer in peers:
        started = time.perf_counter()
        try:
            directs[peer.name] = Direct(case, peer.prepare(case.build(), case.tensor(image)), image)
        # Each library raises classes of its own, and one that can't run a net is a row of the table, not the end of it.
        except Exception as error:  # noqa: BLE001
            refused[peer.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        first_s[peer.name] = time.perf_counter() - started
    results: dict[str, NDArray[np.uint8]] = {}
    # The faster of two calls: a peer that another one's threads held up is not left out for it.
    estimates = {
        name: min(rested(lambda n=name, c=call: results.update({n: c()})) for _ in range(2))  # type: ignore[misc]
        for name, call in directs.items()
    }
    contending = contenders(estimates, {peer.name for peer in peers if peer.precision == "fp32"})
    timed_calls: dict[str, Call] = {**calls, **{name: directs[name] for name in contending}}
    seconds = {name: [estimate] for name, estimate in estimates.items()}
    # Time for three rounds, however slow the net.
    enough_s = 2.5 * (sum(first_s[name] for name in calls) + sum(estimates[name] for name in contending))
    seconds |= interleave(timed_calls, rounds=rounds, budget_s=max(budget_s, enough_s))
    found: dict[str, Row] = {name: _timing(seconds[name], first_s[name]) for name in seconds}
    for name, result in {**{name: call() for name, call in calls.items()}, **results}.items():
        found[name] |= quality(result, expected)
    for peer in peers:
        if peer.name in directs:
            network_ms = 1000 * statistics.median(directs[peer.name].network_s[1:] or directs[peer.name].network_s)
            found[peer.name] |= {"precision": peer.precision, "network_ms": network_ms}
    for name, engine in engines.items():
        found[name] |= {**_plan(engine, case), **choices[name]}
    return {
        "case": title(case),
        "net": case.name,
        "size": case.shown,
        "seconds": time.perf_counter() - begin,
        "refused": refused,
        **judge(found),
        "times": found,
    }


def contenders(estimates: Mapping[str, float], exact: Collection[str]) -> list[str]:
    """List the peers that are near the fastest of all, or near the fastest in fp32: only they are timed in turns."""
    best = min(estimates.values(), default=0.0)
    best_exact = min((estimates[name] for name in estimates if name in exact), default=0.0)
    return [
        name
        for name, seconds in estimates.items()
        if seconds <= DROP_FACTOR * best or (name in exact and seconds <= DROP_FACTOR * best_exact)
    ]


def judge(found: dict[str, Row]) -> Row:
    """Hold the engines against the best peers: ratios above 1 mean that the engine is faster."""
    peers = {name: row for name, row in found.items() if name not in ENGINES}
    right = {n: row for n, row in peers.items() if row["psnr_db"] is None or is_right(row)}
    exact = {n: row for n, row in right.items() if row["precision"] == "fp32"}
    engine, engine_fp32 = (found[name]["median_ms"] for name in ENGINES)
    best, any_, best_fp32 = (min(group, key=lambda n: group[n]["median_ms"]) for group in (right, peers, exact))
    return {
        "median_ms": engine,
        "best_peer": best,
        "ratio": peers[best]["median_ms"] / engine,
        "best_any_peer": any_,
        "ratio_any": peers[any_]["median_ms"] / engine,
        "median_fp32_ms": engine_fp32,
        "best_fp32_peer": best_fp32,
        "ratio_fp32": peers[best_fp32]["median_ms"] / engine_fp32,
    }


def is_right(row: Row) -> bool:
    """Tell whether a result is as close to fp32 as the engine's own rule asks."""
    return bool(row["psnr_db"] >= MIN_DB and row["max_levels"] <= MAX_LEVELS)


def line(row: Row) -> str:
    """Say a row in one line."""
    engine = row["times"]["tilefuse"]
    return (
        f"{row['case']:26} {row['median_ms']:9.1f} ms ({engine['backend']} {engine['precision']})  "
        f"{row['ratio']:.2f}x of {row['best_peer']}, {row['ratio_any']:.2f}x of {row['best_any_peer']}; "
        f"fp32 {row['median_fp32_ms']:.1f} ms, {row['ratio_fp32']:.2f}x of {row['best_fp32_peer']}"
    )


def summary(rows: Sequence[Row]) -> str:
    """Give the geometric means, and the cases where a peer was faster by more than noise."""
    if not rows:
        return "nothing measured"
    lines = []
    for key, what in (("ratio", "default"), ("ratio_any", "default against any peer"), ("ratio_fp32", "fp32")):
        behind = [f"{row['case']} {row[key]:.2f}x" for row in rows if row[key] < 1 - NOISE]
        lines.append(
            f"{what}: geometric mean {geometric_mean([row[key] for row in rows]):.2f}x; behind: "
            + (", ".join(behind) or "none")
        )
    return "\n".join(lines)


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive values."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def quality(result: NDArray[np.uint8], expected: NDArray[np.uint8]) -> Row:
    """Compare a result with the expected one; the PSNR is None where they are equal."""
    found = psnr(result, expected)
    return {"psnr_db": None if math.isinf(found) else found, "max_levels": max_levels(result, expected)}


def _engine(case: Case, precision: str) -> tilefuse.Engine:
    return tilefuse.load(case.bundled or case.build(), precision=precision)


def _choose(engine: tilefuse.Engine, case: Case) -> Row:
    """Have the engine measure its choice, and time that, and looking the recorded choice up."""
    if case.size is None:
        subject, choice_s = LATENTS, timed(engine.warm_latents)
    else:
        width, height = case.size
        subject = Subject(1, height, width, "uint8")
        choice_s = timed(lambda: engine.warm(height, width, channels=case.channels))
    fresh = Choices(engine.model, engine.options, engine.candidates, engine.budget)
    return {"choice_s": choice_s, "recorded_choice_ms": 1000 * timed(lambda: fresh.look(subject))}


def _engine_call(engine: tilefuse.Engine, case: Case, image: NDArray[np.uint8]) -> Call:
    if case.size is None:
        return lambda: engine.generate(case.batch, seed=0)
    return lambda: engine(image)


def _eager(case: Case) -> Callable[[torch.Tensor], torch.Tensor]:
    module = case.build()

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return module(x)  # type: ignore[no-any-return]

    return call


def _timing(seconds: Sequence[float], first_s: float) -> Row:
    timing = Timing.of(seconds)
    return {
        "median_ms": 1000 * timing.median_s,
        "p20_ms": 1000 * timing.p20_s,
        "p80_ms": 1000 * timing.p80_s,
        "rounds": timing.rounds,
        "first_s": first_s,
    }


def _plan(engine: tilefuse.Engine, case: Case) -> dict[str, Any]:
    if case.size is None:
        serving = engine.choices.look(LATENTS).servings[0]
        return {"backend": serving.backend, "precision": serving.precision, "why": list(serving.why)}
    plan = engine.plan(case.size[1], case.size[0], channels=case.channels)
    return {"backend": plan.backend, "precision": plan.precision, "windows": plan.windows, "why": list(plan.why)}


if __name__ == "__main__":
    main()
