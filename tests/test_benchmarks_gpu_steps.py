"""Steps in processes of their own: what one does to itself, and what becomes of the others."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from benchmarks.gpu_steps import NO_TIME, Outcome, Step, run_steps

FAR = 1000.0


def own_pid() -> int:
    return os.getpid()


def fail(text: str) -> None:
    raise ValueError(text)


def die() -> None:
    os._exit(7)


def start_another() -> int:
    """Start a process that outlives this one."""
    return subprocess.Popen(["sleep", "600"]).pid


def hang() -> None:
    time.sleep(600)


def meet(own: str, other: str) -> bool:
    """Return once another step has begun."""
    Path(own).touch()
    end = time.monotonic() + 60
    while not Path(other).exists() and time.monotonic() < end:
        time.sleep(0.01)
    return Path(other).exists()


def nothing() -> None:
    pass


def spoilt() -> None:
    raise RuntimeError("illegal access")


def outcomes(*steps: Step, workers: int = 1, left: float = FAR, recover=nothing) -> list[Outcome]:
    return [outcome for _, outcome in run_steps(steps, time.monotonic() + left, recover, workers=workers)]


def step(function, *arguments: object, seconds: float = FAR) -> Step:
    return Step(function.__name__, function, arguments, seconds)


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and waits to be counted does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_step_that_raises_is_told_and_the_process_goes_on() -> None:
    first, failed, second = outcomes(step(own_pid), step(fail, "broken\nwith details"), step(own_pid))
    assert failed == Outcome(error="ValueError: broken")
    assert first.result == second.result != os.getpid()


def test_a_spoilt_process_is_replaced() -> None:
    first, failed, second = outcomes(step(own_pid), step(fail, ""), step(own_pid), recover=spoilt)
    assert failed.error == "ValueError: "
    assert isinstance(second.result, int)
    assert first.result != second.result


def test_a_process_that_dies_is_replaced() -> None:
    died, after = outcomes(step(die), step(own_pid))
    assert died == Outcome(error="its process died, exit code 7")
    assert after.error is None


def test_a_step_that_hangs_is_killed_with_what_its_process_started() -> None:
    started, hung, after = outcomes(step(start_another), step(hang, seconds=0.2), step(own_pid))
    assert hung == Outcome(error="it was stopped after 0 s")
    assert after.error is None
    end = time.monotonic() + 60
    while alive(started.result) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(started.result)


def test_none_begins_after_the_deadline() -> None:
    hung, after = outcomes(step(hang), step(own_pid), left=1.0)
    assert hung.error == "it was stopped after 1 s"
    assert after == Outcome(error=NO_TIME)


def test_several_processes_run_at_once(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert outcomes(step(meet, a, b), step(meet, b, a), workers=2) == [Outcome(True), Outcome(True)]
