"""The GPU check's whole jobs, tried on a CPU: what is measured, and what is red."""

from __future__ import annotations

import pytest

from benchmarks import gpu_overlap
from benchmarks.gpu_clock import HostClock

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]
CHECK = ("kernel", "dtype", "max_error", "rms_error", "tiled_equal", "passed")


def test_one_and_two_callers_are_timed_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu_overlap.overlap(True, 0)
    assert all(key in found for key in CHECK)
    assert found["passed"]
    assert found["tiled_equal"]
    assert found["windows"] == 6
    assert len(found["mp_s"]) == 2
    assert min(found["mp_s"]) > 0
    run = gpu_overlap._run

    def other(cut: object, runner: object, image: object, callers: int) -> object:
        made, taken = run(cut, runner, image, callers)  # type: ignore[arg-type]
        made[0, 0, 0, 0] += callers == 2
        return made, taken

    monkeypatch.setattr(gpu_overlap, "_run", other)
    assert not gpu_overlap.overlap(True, 0)["passed"]


def test_a_budget_that_is_passed_or_changes_pixels_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu_overlap.budget(True, 0)
    assert all(key in found for key in CHECK)
    assert found["passed"]
    assert found["windows"] > 1
    assert found["planned_bytes"] <= found["budget_bytes"]
    peak = HostClock.peak_bytes
    monkeypatch.setattr(HostClock, "peak_bytes", lambda clock, call: peak(clock, call) + found["budget_bytes"] + 1)
    past = gpu_overlap.budget(True, 0)
    assert past["tiled_equal"]
    assert not past["passed"]
    monkeypatch.setattr(HostClock, "peak_bytes", peak)
    run, whole = gpu_overlap._run, []

    def other(cut: object, runner: object, image: object, callers: int) -> object:
        made, taken = run(cut, runner, image, callers)  # type: ignore[arg-type]
        made[0, 0, 0, 0] += len(whole)
        whole.append(cut)
        return made, taken

    monkeypatch.setattr(gpu_overlap, "_run", other)
    assert not gpu_overlap.budget(True, 0)["tiled_equal"]


def test_every_job_is_one_that_copies_or_computes_more() -> None:
    assert [job.name.split()[0] for job in gpu_overlap.JOBS] == ["ESPCN", "Compact"]
    assert all(job.memory == 512 << 20 for job in gpu_overlap.JOBS)
