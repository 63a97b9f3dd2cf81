"""Keep measuring within its time: what the next step is expected to take is weighed before it begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from tilefuse.tasks import Entrant, Measurement
from tilefuse.timing import BRIEF_REST_S, now, rested

# A candidate this many times slower than the fastest leaves the rounds.
_DROP_FACTOR = 1.25
_ROUNDS = 9
# The share of the time that is kept back: a busy machine makes a step last longer than the same step before.
_KEPT_BACK = 0.05

Result = TypeVar("Result")


class Pace:
    """Tells what there still is time for, between two readings of the clock.

    It learns by how much steps outlast what was predicted of them, and allows the next one as much.
    """

    def __init__(self, begin: float, end: float) -> None:
        self._end = end - _KEPT_BACK * (end - begin)
        self._worst_delay = 0.0

    def allows(self, predicted_s: float) -> bool:
        """Tell whether a step can be done that is predicted to take so many seconds."""
        return self.has_time_for(predicted_s + self._worst_delay)

    def refusal(self, predicted_s: float) -> str:
        """Say why a step can't be done."""
        needed = predicted_s + self._worst_delay
        return f"not measured: too little time, it needs about {needed:.1f} s and {self.left_s():.1f} s are left"

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return max(0.0, self._end - now())

    def has_time_for(self, known_s: float) -> bool:
        """Tell whether something can be done that took so many seconds before."""
        return now() + known_s <= self._end

    def step(self, predicted_s: float, call: Callable[[], Result]) -> Result:
        """Do a step, and learn from how long it takes."""
        begin = now()
        result = call()
        self._worst_delay = max(self._worst_delay, now() - begin - predicted_s)
        return result


def timing_seconds(entrants: Sequence[Entrant]) -> float:
    """Return the seconds that timing each of the entrants once takes."""
    return sum(entrant.first_s for entrant in entrants)


def ranked(entrants: Sequence[Entrant], pace: Pace) -> list[Measurement]:
    """Time in interleaved rounds, leave out who is clearly behind, and sort by the median.

    No run begins that would not end in time; who was never timed is told by the run that warmed up.
    """
    seconds: list[list[float]] = [[] for _ in entrants]
    racing = list(range(len(entrants)))
    for number in range(_ROUNDS):
        timely = False
        for place in racing:
            if pace.has_time_for(BRIEF_REST_S + max(seconds[place], default=entrants[place].first_s)):
                seconds[place].append(rested(entrants[place].run, BRIEF_REST_S))
                timely = True
        if not timely:
            break
        if number:
            best = [
                entrant.scale * min(taken or [entrant.first_s])
                for entrant, taken in zip(entrants, seconds, strict=True)
            ]
            racing = [place for place in racing if best[place] <= _DROP_FACTOR * min(best)]
    found = []
    for entrant, taken in zip(entrants, seconds, strict=True):
        median = float(np.median(taken or [entrant.first_s]))
        timed_so = replace(entrant.measurement, seconds=median * entrant.scale, window_seconds=median / entrant.windows)
        found.append(timed_so)
    return sorted(found, key=lambda m: m.seconds or math.inf)
