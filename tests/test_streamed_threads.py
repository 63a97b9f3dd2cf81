"""Threads of streamed jobs: a window each where several can run at once, and the same ones when a job goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tilefuse
from tilefuse import file_jobs
from tilefuse.errors import UsageError
from tilefuse.planner import Plan, Serving, Timed
from tilefuse.streaming_run import _settled
from tilefuse.tiling import Grid

SERVING = Serving("openvino", "cpu", "fp32", (), batch=4)


@pytest.mark.parametrize(
    ("serving", "processors", "expected"),
    [
        (SERVING, 2, (2, 1, 1)),
        (SERVING, 4, (4, 1, 1)),
        (SERVING, 1, (1, 0, 1)),
        (SERVING, 16, (1, 0, 1)),
        (replace(SERVING, backend="torch_eager"), 2, (1, 0, 1)),
        (replace(SERVING, device="cuda"), 2, (1, 0, 1)),
        (replace(SERVING, backend="triton_fused", device="cuda"), 2, (1, 0, 1)),
        (
            replace(SERVING, backend="triton_fused", device="cuda", timed=(Timed(0, 1, 1.0),), workers=2, threads=8),
            2,
            (2, 8, 1),
        ),
        (replace(SERVING, timed=(Timed(0, 1, 1.0),), threads=2), 2, (1, 2, 1)),
    ],
)
def test_a_window_has_a_thread_of_its_own_on_few_processors(
    serving: Serving, processors: int, expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_jobs, "cpu_threads", lambda: processors)
    made = file_jobs._one_by_one(serving)
    assert (made.workers, made.threads, made.batch) == expected


def test_one_window_at_a_time_gets_all_threads() -> None:
    """The planner gives up windows side by side where they don't fit the memory."""
    asked: list[tuple[int, int]] = []

    def planned(serving: Serving) -> tuple[Plan, Grid]:
        asked.append((serving.workers, serving.threads))
        return type("Plan", (), {"workers": 1})(), type("Grid", (), {"window": (8, 8), "__len__": lambda _: 9})()

    serving, _, _ = _settled([replace(SERVING, workers=4, threads=1)], planned, lambda serving, window: None)
    assert (serving.workers, serving.threads) == (1, 4)
    assert asked == [(4, 1), (1, 4)]
    # Those of a GPU's workers compute nothing.
    serving, _, _ = _settled(
        [replace(SERVING, device="cuda", workers=2, threads=8)], planned, lambda serving, window: None
    )
    assert (serving.workers, serving.threads) == (1, 8)


def test_a_job_goes_on_with_the_threads_it_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8))
    engine = tilefuse.load("espcn-x4", tile=16, backend="openvino", measure_seconds=0, cache_dir=tmp_path)
    seen: list[tuple[int, int]] = []

    def noted(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 8:
            raise UsageError("stopped")

    monkeypatch.setattr(file_jobs, "cpu_threads", lambda: 2)
    engine.run_file(tmp_path / "in.npy", tmp_path / "reference.npy")
    with pytest.raises(UsageError, match="stopped"):
        engine.run_file(tmp_path / "in.npy", tmp_path / "out.npy", progress=noted)
    # On a machine of more processors as many would go together, and a job of other threads be refused.
    monkeypatch.setattr(file_jobs, "cpu_threads", lambda: 16)
    report = engine.run_file(tmp_path / "in.npy", tmp_path / "out.npy", resume=True)
    assert report.resumed >= 7
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "reference.npy").read_bytes()
