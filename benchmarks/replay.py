"""Hand interleaved measurements to pytest-benchmark.

It times one subject after another; what is compared here is timed in turns, so that a slow moment of the machine falls
on all. The durations come first, and pytest-benchmark, whose clock this is, counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Replay:
    """A clock that moves by one recorded duration a step."""

    def __init__(self) -> None:
        self._now = 0.0
        self._left: list[float] = []

    def now(self) -> float:
        """Return the time: what pytest-benchmark calls its timer."""
        return self._now

    def step(self) -> None:
        """Let the next duration pass."""
        self._now += self._left.pop(0)

    def play(self, benchmark: Any, seconds: Sequence[float]) -> None:
        """Have `benchmark` count the durations."""
        self._left = list(seconds)
        benchmark.pedantic(self.step, rounds=len(seconds), iterations=1)


REPLAY = Replay()


def replayed_timer() -> float:
    """Return the time of the one clock that all suites share."""
    return REPLAY.now()
