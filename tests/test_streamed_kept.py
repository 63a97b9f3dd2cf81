"""Finished cores that wait in memory for the encoder: as many as the budget leaves room for, and the same result."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tilefuse
from tilefuse import streamed_budget
from tilefuse.planner import Plan
from tilefuse.storage.cells import CellRaster
from tilefuse.streamed_budget import kept_bytes
from tilefuse.streamed_job import StreamJob

pytest.importorskip("tifffile")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("name", "device", "free", "kept"),
    [
        ("x.tif", "cpu", 1000 * MIB, 192 * MIB),
        ("x.png", "cpu", 10 * MIB, 5 * MIB),
        ("x.tif", "cpu", -1, 0),
        ("x.npy", "cpu", 1000 * MIB, 0),
        ("x.webp", "cpu", 1000 * MIB, 0),
        ("x.tif", "cuda:0", 1000 * MIB, 0),
    ],
)
def test_what_the_plan_leaves_is_used_up_to_a_bound(name: str, device: str, free: int, kept: int) -> None:
    made: Any = SimpleNamespace(device=device, memory_bytes=2000 * MIB, peak_bytes=2000 * MIB - free)
    assert kept_bytes(StreamJob(Path("in.npy"), Path(name)), made) == kept


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_the_encoder_reads_from_memory_what_from_the_file_is_the_same(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == ".png":
        pytest.importorskip("pyvips")
    engine = tilefuse.load("espcn-x2", tile=16, backend="torch_eager", measure_seconds=0)
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8))
    original, reads, plans = CellRaster._stored, [0], list[Plan]()

    def stored(*given: Any) -> Any:
        reads[0] += 1
        return original(*given)

    monkeypatch.setattr(CellRaster, "_stored", stored)
    engine.run_file(tmp_path / "in.npy", tmp_path / f"memory{suffix}", on_plan=plans.append)
    assert reads[0] == 0
    monkeypatch.setattr(streamed_budget, "_MOST_KEPT_BYTES", 0)
    engine.run_file(tmp_path / "in.npy", tmp_path / f"file{suffix}", on_plan=plans.append)
    assert reads[0] > 0
    assert (tmp_path / f"memory{suffix}").read_bytes() == (tmp_path / f"file{suffix}").read_bytes()
    assert plans[1].peak_bytes < plans[0].peak_bytes <= plans[0].memory_bytes


def test_rows_that_the_encoder_is_past_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tilefuse.load("espcn-x2", tile=16, backend="torch_eager", measure_seconds=0)
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 256, (150, 20, 3), np.uint8))
    original, passed = CellRaster.passed, list[int]()

    def noted(self: CellRaster, rows: int) -> None:
        passed.append(rows)
        original(self, rows)
        assert all(self._tops[row + 1] > rows for row, _ in self._kept)

    monkeypatch.setattr(CellRaster, "passed", noted)
    engine.run_file(tmp_path / "in.npy", tmp_path / "out.tif")
    assert passed == [256, 300]
