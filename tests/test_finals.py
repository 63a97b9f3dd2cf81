"""The second stage of measuring: leading backends on the picture, or on a part of it, fairly and in time."""

from __future__ import annotations

import pytest

from tests.measuring import CLOCK, Slow, backends, small_model
from tilefuse import candidates
from tilefuse.measurement import Measurement, Subject, Task, measure
from tilefuse.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


def measured(
    monkeypatch: pytest.MonkeyPatch, model: Model, fakes: list[Slow], size: tuple[int, int], tile: int | None = 0
) -> tuple[Measurement, ...]:
    backends(monkeypatch, *fakes)
    monkeypatch.setattr(candidates, "has_bf16", lambda: False)
    names = tuple(fake.name for fake in fakes)
    return measure(Task(model, Subject(1, *size, "uint8"), "cpu", names, "auto", tile, 2, 1 << 32, 10.0))


def test_a_picture_there_is_no_time_to_run_whole_is_run_in_part(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = [Slow("ahead", a_pixel=6e-6), Slow("behind", a_pixel=7e-6)]
    found = measured(monkeypatch, model, fakes, (1000, 1200))
    assert CLOCK.now <= 10.0
    assert [m.candidate.backend for m in found] == ["ahead", "behind"]
    # Of one size, larger than the patch and of the picture's shape.
    assert found[0].window == found[1].window
    height, width = found[0].window
    assert 250 < height < width < 1200
    assert width / height == pytest.approx(1.2, rel=0.01)
    assert found[0].seconds == pytest.approx(6e-6 * 1000 * 1200, rel=0.05)
    assert found[1].seconds == pytest.approx(7e-6 * 1000 * 1200, rel=0.05)


@pytest.mark.parametrize("width", [2000, 3000])
def test_a_first_run_that_takes_twice_as_long_is_not_what_tells_the_time(
    model: Model, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    fakes = [Slow("maps memory", a_pixel=6e-6, first=2.0), Slow("far behind", a_pixel=2e-5)]
    found = measured(monkeypatch, model, fakes, (600, width))
    assert CLOCK.now <= 10.0
    assert found[0].candidate.backend == "maps memory"
    assert found[0].seconds == pytest.approx(6e-6 * 600 * width, rel=0.05)


def test_time_that_runs_out_has_seen_every_leader(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = [Slow(f"b{n}", 0.3, compiling=0.3) for n in range(2)]
    found = measured(monkeypatch, model, fakes, (600, 800), None)
    tried = {m.candidate.backend for m in found if m.candidate.tile and m.seconds is not None}
    assert any("too little time" in (m.reason or "") for m in found)
    assert tried == {"b0", "b1"}


def test_who_was_seen_on_the_patch_only_is_told_by_how_it_compared_there(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What outgrows the cache takes longer than the patch tells; the last one, which the others keep out, does as well.
    fakes = [Slow(f"b{n}", a_pixel=2e-9 * (1 + n / 20), power=1.5) for n in range(4)]
    found = measured(monkeypatch, model, fakes, (400, 500))
    assert [m.candidate.backend for m in found] == ["b0", "b1", "b2", "b3"]
    assert found[2].window == (400, 500)
    assert found[3].window == (160, 160)
    for place, m in enumerate(found):
        assert m.seconds == pytest.approx(2e-9 * (1 + place / 20) * 200_000**1.5, rel=0.02)
