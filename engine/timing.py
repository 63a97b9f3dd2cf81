"""Time several calls side by side: interleaved rounds, so that a slow moment of the machine falls on all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Threads that are out of work spin for a while before they sleep, and take the processor from the next call: most
# libraries' for up to 10 ms, those of ONNX Runtime, called as by a user, for 50 ms.
BRIEF_REST_S, _REST_S = 0.01, 0.06
# To wake the threads that sleep by then takes up to 8 ms (seen on Linux 6.18), which is nobody's speed: calls that are
# not much longer go once uncounted first.
_WOKEN_BELOW_S = 0.25


@dataclass(frozen=True)
class Timing:
    """Durations of one call in seconds; `rounds` is less than was asked for where the call was clearly behind."""

    median_s: float
    p20_s: float
    p80_s: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise one or more durations."""
        median, p20, p80 = np.percentile(seconds, (50, 20, 80))
        return cls(float(median), float(p20), float(p80), len(seconds))


def now() -> float:
    """Return the reading of the clock that durations are taken with, in seconds."""
    return time.perf_counter()


def timed(call: Callable[[], object]) -> float:
    """Return the seconds a call took."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def interleave(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    drop_factor: float = math.inf,
    budget_s: float = math.inf,
) -> dict[str, list[float]]:
    """Time every call in interleaved rounds and return its durations, after one round to warm up that is not counted.

    A call whose best time, that of the warm-up included, is over `drop_factor` times the fastest one's is left out of
    the rounds that follow; one that was never counted is told by its warm-up. When the rounds have taken `budget_s`
    seconds no further one begins, but at least one is run. Brief calls are timed at once after one that is not counted,
    as in a loop.
    """
    warm = {name: rested(call) for name, call in calls.items()}
    best = dict(warm)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - begin > budget_s:
            break
        limit = drop_factor * min(best.values())
        for name in [name for name in calls if best[name] <= limit]:
            seconds[name].append(_turn(calls[name], best[name]))
            best[name] = min(best[name], seconds[name][-1])
    return {name: seconds[name] or [warm[name]] for name in calls}


def _turn(call: Callable[[], object], expected_s: float) -> float:
    if expected_s >= _WOKEN_BELOW_S:
        return rested(call)
    rested(call)
    return timed(call)


def rested(call: Callable[[], object], rest_s: float = _REST_S) -> float:
    """Time a call when the threads of the one before have gone to sleep."""
    time.sleep(rest_s)
    return timed(call)
