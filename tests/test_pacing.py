"""Measuring ends in its time, however slow compiling and running are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.measuring import CLOCK, FakeBackend, Slow, backends
from tilefuse import candidates, latent_measurement, measurement
from tilefuse.candidates import Candidate
from tilefuse.measurement import Measurement, Subject, Task, measure
from tilefuse.model import Model
from tilefuse.pacing import Pace, ranked
from tilefuse.source import load_model
from tilefuse.tasks import Entrant


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return load_model(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)))


def measured(
    monkeypatch: pytest.MonkeyPatch, model: Model, fakes: Sequence[FakeBackend], size: tuple[int, int] = (40, 60)
) -> tuple[Measurement, ...]:
    backends(monkeypatch, *fakes)
    monkeypatch.setattr(candidates, "has_bf16", lambda: False)
    names = tuple(fake.name for fake in fakes)
    return measure(Task(model, Subject(1, *size, "uint8"), "cpu", names, "auto", None, 2, 1 << 32, 10.0))


@pytest.mark.parametrize("a_pixel", [1e-6, 4e-5, 4e-4])
@pytest.mark.parametrize("delay", [0.001, 0.4])
@pytest.mark.parametrize("compiling", [0.01, 0.6, 3.0])
def test_slow_compilers_and_slow_runs_end_in_time(
    model: Model, monkeypatch: pytest.MonkeyPatch, compiling: float, delay: float, a_pixel: float
) -> None:
    # Each is slower than the one before, so that no prediction from the last one suffices.
    fakes = [Slow(f"b{n}", delay * (1 + n / 4), compiling=compiling * (1 + n / 4), a_pixel=a_pixel) for n in range(5)]
    found = measured(monkeypatch, model, fakes)
    assert CLOCK.now <= 10.0
    assert found[0].reason is None
    assert found[0].seconds is not None


def test_one_is_measured_however_long_it_takes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, model, [Slow("late", 1.0, compiling=25.0), Slow("later", 1.0, compiling=25.0)])
    assert found[0].seconds is not None
    assert found[0].reason is None
    assert {m.candidate.backend for m in found if m.seconds is not None} == {"late"}
    assert CLOCK.now == 26.0
    assert any("too little time" in (m.reason or "") for m in found)


def test_time_that_is_there_is_used(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, model, [Slow(f"b{n}", 0.02 * (1 + n / 10)) for n in range(4)], (170, 200))
    assert all(m.reason is None for m in found)
    assert {m.candidate.backend for m in found} == {"b0", "b1", "b2", "b3"}
    assert len([m for m in found if m.candidate.tile]) > 1


def test_latents_are_measured_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = [Slow(f"b{n}", 0.2 * (1 + n / 4), compiling=1.5 * (1 + n / 4)) for n in range(6)]
    backends(monkeypatch, *fakes)
    monkeypatch.setattr(candidates, "has_bf16", lambda: False)
    task: Any = Task(
        load_model("gan-digits"),
        latent_measurement.LATENTS,
        "cpu",
        tuple(fake.name for fake in fakes),
        "auto",
        None,
        2,
        1 << 32,
        10.0,
    )
    monkeypatch.setattr(latent_measurement, "time", measurement.time)
    found = latent_measurement.measure_latents(task)
    assert 5.0 < CLOCK.now <= 10.0
    assert found[0].candidate.backend == "b0"
    assert found[0].reason is None


def entrant(name: str, seconds: Sequence[float], *, windows: int = 1, scale: float = 1.0) -> Entrant:
    """An entrant whose runs take `seconds` in turn, the first of which warmed it up."""
    left = list(seconds[1:])

    def run() -> None:
        CLOCK.now += left.pop(0)

    m = Measurement(Candidate(name, "fp32", 1), (8, 8))
    return Entrant(m, run, windows, scale, 0.0, seconds[0], np.zeros((1, 8, 8, 3), np.uint8))


def test_a_median_is_that_of_the_whole_subject_and_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    backends(monkeypatch)
    # Of two windows of eight, and all at once: the order is by what the subject takes, and one slow round is nothing.
    racing = [
        entrant("tiled", [9.0, 0.2, 0.4, *[0.2] * 7], windows=2, scale=4.0),
        entrant("whole", [9.0, *[0.7] * 8, 7.0], windows=1),
    ]
    found = ranked(racing, Pace(0.0, 1e6))
    assert [m.candidate.backend for m in found] == ["whole", "tiled"]
    assert [m.seconds for m in found] == pytest.approx([0.7, 0.8])
    assert [m.window_seconds for m in found] == pytest.approx([0.7, 0.1])


def test_who_is_behind_after_two_rounds_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    backends(monkeypatch)
    # One round is not enough to tell: the one that starts badly stays, whose subject takes as long as the best one's.
    racing = [
        entrant("late", [9.0, 0.9, *[0.1] * 8], scale=1.0),
        entrant("scaled", [9.0, *[0.02] * 9], scale=5.0),
        entrant("behind", [9.0, *[0.2] * 2], scale=1.0),
    ]
    found = {m.candidate.backend: m.seconds for m in ranked(racing, Pace(0.0, 1e6))}
    assert found == pytest.approx({"late": 0.1, "scaled": 0.1, "behind": 0.2})


def test_a_round_that_would_not_end_in_time_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    backends(monkeypatch)
    # What is known of the slow one is its warm-up; of the quick one, its slowest round.
    racing = [entrant("slow", [4.0]), entrant("quick", [0.1, 0.1, 2.0, 0.1, 0.1])]
    found = ranked(racing, Pace(0.0, 4.0))
    assert {m.candidate.backend: m.seconds for m in found} == pytest.approx({"quick": 1.05, "slow": 4.0})
    assert CLOCK.now <= 4.0


def test_a_pace_allows_for_what_was_late(monkeypatch: pytest.MonkeyPatch) -> None:
    backends(monkeypatch)
    pace = Pace(0.0, 10.0)
    assert pace.allows(9.4)
    assert not pace.allows(9.6)

    def late() -> str:
        CLOCK.now += 2.0
        return "done"

    assert pace.step(0.5, late) == "done"
    assert pace.allows(5.9)
    assert not pace.allows(6.1)
    # The worst of them counts, not the last one.
    assert pace.step(2.0, lambda: CLOCK.now) == 2.0
    assert not pace.allows(6.1)
    # What was seen before needs no such allowance.
    assert pace.has_time_for(7.4)
    assert not pace.has_time_for(7.6)
