"""The GPU check's whole jobs, tried on a CPU: what is measured, and what is red."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, gpu_overlap
from benchmarks.gpu_clock import HostClock
from benchmarks.gpu_steps import NO_TIME, Outcome

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]
CHECK = ("kernel", "dtype", "max_error", "rms_error", "tiled_equal", "passed")


def drawn(*values: int) -> Any:
    """Stand in for running a job: the n-th run gives pixels of the n-th value, or of the last one."""
    left = list(values)

    def run(cut: Any, *_: object) -> tuple[np.ndarray, float]:
        return np.full((1, *cut.output, 3), left.pop(0) if len(left) > 1 else left[0], np.uint8), 0.5

    return run


@pytest.mark.slow
def test_jobs_run_on_a_cpu() -> None:
    found = gpu_overlap.overlap(True, 0)
    assert all(key in found for key in CHECK)
    assert found["passed"]
    assert found["windows"] > 1
    assert len(found["mp_s"]) == 2
    assert min(found["mp_s"]) > 0
    found = gpu_overlap.budget(True, 0)
    assert all(key in found for key in CHECK)
    assert found["passed"]
    assert found["windows"] > 1


@pytest.mark.parametrize("values", [(1,), (1, 2, 1), (1, 1, 2, 1), (1, 1, 1, 2)])
def test_one_and_two_callers_are_timed_and_compared(values: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run of each number of callers, and then the rounds: any of them that differs is red."""
    monkeypatch.setattr(gpu_overlap, "_run", drawn(*values))
    row = gpu_overlap.overlap(True, 0)
    assert row["passed"] == row["tiled_equal"] == (len(values) == 1)
    assert row["mp_s"] == [8 * 40 / 0.5 / 1e6] * 2


@pytest.mark.parametrize(
    ("extra", "values", "passed", "equal"), [(0, (1,), True, True), (1, (1,), False, True), (0, (1, 2), False, False)]
)
def test_a_budget_that_is_passed_or_changes_pixels_is_red(
    extra: int, values: tuple[int, ...], passed: bool, equal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    growth = gpu_overlap.TINY[0].memory + extra
    monkeypatch.setattr(gpu_overlap, "_run", drawn(*values))
    monkeypatch.setattr(HostClock, "peak_bytes", lambda _, call: call() or growth)
    row = gpu_overlap.budget(True, 0)
    assert (row["passed"], row["tiled_equal"], row["growth_bytes"]) == (passed, equal, growth)
    assert row["windows"] > 1
    assert row["planned_bytes"] <= row["budget_bytes"]


def test_jobs_are_steps_of_the_check_and_their_rows_are_checks() -> None:
    steps = gpu_overlap.steps(dry=True)
    assert [step.name for step in steps] == ["overlap ESPCN tiny", "budget ESPCN tiny"]
    assert [step.name for step in gpu_overlap.steps(dry=False)] == [
        f"{kind} {job.name}" for kind in ("overlap", "budget") for job in gpu_overlap.JOBS
    ]
    assert all(step in gpu._timings(True, [], [(0, "a kernel")]) for step in steps)
    assert not any(step in gpu._timings(True, [], []) for step in steps)
    record: dict[str, Any] = {"checks": [], "notes": []}
    row = gpu_overlap._check("one and two callers, ESPCN tiny", True)
    for step, outcome in zip(
        (*steps, steps[0]),
        (Outcome(row), Outcome(error="it was stopped after 60 s"), Outcome(error=NO_TIME)),
        strict=True,
    ):
        gpu._take_time(record, {}, step, outcome)
    assert [(each["kernel"], each["passed"]) for each in record["checks"]] == [
        ("one and two callers, ESPCN tiny", True),
        ("budget ESPCN tiny", False),
    ]
    assert record["checks"][1]["error"] == "it was stopped after 60 s"
    assert record["notes"] == [f"overlap ESPCN tiny: not run, {NO_TIME}"]


def test_the_jobs_of_the_claim_are_there() -> None:
    assert [job.name.split()[0] for job in gpu_overlap.JOBS] == ["ESPCN", "Compact"]
    assert all(job.memory == 512 << 20 for job in gpu_overlap.JOBS)
