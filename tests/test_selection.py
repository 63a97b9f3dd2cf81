"""The choice: measured once, recorded, and never changed under way."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

import tilefuse
from tests.measuring import small_module
from tilefuse import measurement, selection
from tilefuse.candidates import Candidate, allowed_backends
from tilefuse.errors import ModelError
from tilefuse.measurement import Measurement, Subject, Task
from tilefuse.selection import bucket


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return small_module()


def test_shapes_share_buckets() -> None:
    assert bucket(Subject(1, 1080, 1920, "uint8")) == Subject(1, 2048, 2048, "uint8")
    assert bucket(Subject(1, 64, 65, "uint8")) == Subject(1, 64, 128, "uint8")
    assert bucket(Subject(3, 1, 90_000, "float32")) == Subject(3, 64, 4096, "float32")


PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def verdict_for(backend: str, tile: int = 0) -> Any:
    """Stand in for measuring: says that a backend was the fastest, and counts how often it was asked."""
    calls: list[Task] = []

    def stand_in(asked: Task) -> tuple[Measurement, ...]:
        calls.append(asked)
        window = (asked.subject.height, asked.subject.width) if tile == 0 else (tile + 4, tile + 4)
        return (Measurement(Candidate(backend, "fp32", 1, 1, tile), window, 0.1, 0.1, 0.0, 99.0),)

    return SimpleNamespace(measure=stand_in, calls=calls)


def test_a_small_image_is_not_kept_waiting(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = verdict_for("torch_eager")
    monkeypatch.setattr(selection, "measure", fake.measure)
    engine = tilefuse.load(module)
    engine(PICTURE)
    engine.plan(40, 60)
    assert not fake.calls
    assert "not measured yet" in str(engine.plan(40, 60))


def test_a_job_that_repays_it_is_measured_once(
    module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = verdict_for("torch_eager", 16)
    monkeypatch.setattr(selection, "measure", fake.measure)
    engine = tilefuse.load(module, cache_dir=tmp_path, measure_seconds=1e-9)
    expected = tilefuse.load(module, backend="torch_eager", tile=16)(PICTURE)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(engine, [PICTURE] * 8))
    assert len(fake.calls) == 1
    assert all(np.array_equal(result, expected) for result in results)
    plan = engine.plan(40, 60)
    assert (plan.backend, plan.tile) == ("torch_eager", 16)
    assert any("torch_eager fp32, tile 16" in why and "chosen" in why for why in plan.why)
    # Another engine, in another process too, finds it recorded; another type of image is another question.
    again = tilefuse.load(module, cache_dir=tmp_path, measure_seconds=0)
    assert again.plan(40, 60).tile == 16
    assert again.plan(40, 60, dtype="float32").tile == 0
    assert tilefuse.load(module, cache_dir=tmp_path / "other").plan(40, 60).tile == 0
    assert tilefuse.load(module, cache_dir=tmp_path, measure_seconds=0)(PICTURE).shape == (80, 120, 3)
    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("predicted_s", "options", "asked"),
    [
        (31.0, {}, True),
        (29.0, {}, False),
        (0.4, {"measure_seconds": 0.1}, True),
        (1e6, {"measure_seconds": 0}, False),
        (1e6, {"halo": 2}, False),
    ],
)
def test_only_what_repays_measuring_is_measured(
    module: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    predicted_s: float,
    options: dict[str, Any],
    asked: bool,
) -> None:
    fake = verdict_for("torch_eager")
    monkeypatch.setattr(selection, "measure", fake.measure)
    monkeypatch.setattr(selection, "predicted_image_seconds", lambda *_: predicted_s)
    tilefuse.load(module, cache_dir=tmp_path, **options)(PICTURE)
    assert bool(fake.calls) == asked


def test_what_is_asked_of_a_measurement(module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = verdict_for("torch_eager")
    monkeypatch.setattr(selection, "measure", fake.measure)
    monkeypatch.setattr(selection, "predicted_image_seconds", lambda *_: 1e6)
    engine = tilefuse.load(module, cache_dir=tmp_path, memory="700MiB", precision="bf16", tile=8)
    engine(PICTURE)
    # An image of the same bucket asks nothing anew.
    engine(PICTURE[:-1, :-3])
    (unasked,) = fake.calls
    assert "inductor" not in unasked.backends
    assert len(unasked.backends) > 1
    assert (unasked.memory, unasked.policy, unasked.tile) == (700 << 20, "bf16", 8)
    assert (unasked.subject.height, unasked.subject.width, unasked.budget_s) == (40, 60, 10.0)
    # Asked for, everything is measured, of a corner.
    engine.warm(3000, 50)
    assert fake.calls[-1].backends == allowed_backends("auto")
    assert (fake.calls[-1].subject.height, fake.calls[-1].subject.width) == (2048, 50)
    assert len(engine.plan(3000, 50).why) > 1
    engine.warm(3000, 50, seconds=3.0)
    assert fake.calls[-1].budget_s == 3.0
    # The only one that is allowed is measured, even if it compiles.
    monkeypatch.setenv("TILEFUSE_BACKENDS", "inductor")
    tilefuse.load(module, cache_dir=tmp_path / "forced")(PICTURE)
    assert fake.calls[-1].backends == ("inductor",)


@pytest.mark.parametrize("changed", [{"precision": "fp32"}, {"tile": 16}, {"backend": "torch_eager"}], ids=str)
def test_another_question_is_measured_anew(
    module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    fake = verdict_for("torch_eager", 24)
    monkeypatch.setattr(selection, "measure", fake.measure)
    tilefuse.load(module, cache_dir=tmp_path).warm(40, 60)
    files = set((tmp_path / "verdicts").iterdir())
    tilefuse.load(module, cache_dir=tmp_path, **changed).warm(40, 60)
    assert len(set((tmp_path / "verdicts").iterdir()) - files) == 1


@pytest.mark.parametrize("changed", ["_versions", "_device_name", "_driver", "cpu_threads"])
def test_a_changed_machine_is_measured_anew(
    module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    fake = verdict_for("torch_eager", 16)
    monkeypatch.setattr(selection, "measure", fake.measure)
    tilefuse.load(module, cache_dir=tmp_path).warm(40, 60)
    assert tilefuse.load(module, cache_dir=tmp_path).plan(40, 60).tile == 16
    monkeypatch.setattr(selection, changed, lambda *_: (("torch", "new"),) if changed == "_versions" else 77)
    assert tilefuse.load(module, cache_dir=tmp_path).plan(40, 60).tile == 0


def test_the_versions_are_those_that_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict(selection._versions())
    assert found["tilefuse"] == tilefuse.__version__
    for name in set(selection._LIBRARIES) & {*found}:
        assert found[name] == version(name)
    assert "torch" in found
    # The first folder of the path wins, as it does for an import.
    (tmp_path / "onnxruntime_gpu-9.9.dist-info").mkdir()
    (tmp_path / "archive.zip").write_bytes(b"")
    listdir = os.listdir

    def forbidding(folder: str) -> list[str]:
        if folder == "/another's":
            raise PermissionError(13, "Permission denied")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", forbidding)
    monkeypatch.setattr(
        sys, "path", [str(tmp_path / "none"), "/another's", str(tmp_path / "archive.zip"), str(tmp_path)]
    )
    assert dict(selection._versions.__wrapped__()) == {"tilefuse": tilefuse.__version__, "onnxruntime-gpu": "9.9"}


def test_a_choice_does_not_change_under_way(module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = verdict_for("torch_eager", 16)
    monkeypatch.setattr(selection, "measure", fake.measure)
    engine = tilefuse.load(module, cache_dir=tmp_path)
    engine(PICTURE)
    before = engine.plan(40, 60).backend
    # Another process measures: this engine goes on as it began, and only its own warm changes that.
    tilefuse.load(module, cache_dir=tmp_path).warm(40, 60)
    assert (engine.plan(40, 60).backend, engine.plan(40, 60).tile) == (before, 0)
    assert engine.warm(40, 60).tile == 16
    assert engine.plan(40, 60).tile == 16


def test_a_damaged_record_is_said_in_the_plan(module: nn.Module, tmp_path: Path) -> None:
    tilefuse.load(module, cache_dir=tmp_path, backend="torch_eager").warm(40, 60)
    (path,) = (tmp_path / "verdicts").iterdir()
    path.write_text("{")
    with pytest.warns(UserWarning, match="damaged or foreign"):
        plan = tilefuse.load(module, cache_dir=tmp_path, backend="torch_eager").plan(40, 60)
    assert any("damaged or foreign" in why for why in plan.why)


def test_a_measured_choice_gives_what_its_backend_gives(
    module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEFUSE_BACKENDS", "openvino,torch_eager")
    engine = tilefuse.load(module, cache_dir=tmp_path, precision="fp32")
    plan = engine.warm(40, 60)
    assert plan.seconds is not None
    direct = tilefuse.load(module, backend=plan.backend, precision=plan.precision, tile=plan.tile)(PICTURE)
    assert np.array_equal(engine(PICTURE), direct)
    reference = tilefuse.load(module, backend="torch_eager", tile=0)(PICTURE)
    assert np.abs(engine(PICTURE).astype(int) - reference).max() <= 1


def test_nothing_measured_leaves_the_prediction(
    module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "measure", lambda task: ())
    engine = tilefuse.load(module, cache_dir=tmp_path)
    plan = engine.warm(40, 60)
    assert plan.backend == engine.serving.backend
    assert any("nothing could be measured" in why for why in plan.why)
    assert not (tmp_path / "verdicts").exists()
    assert measurement.measured_table(()) == ()


def test_latents_are_drawn_by_who_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEFUSE_BACKENDS", "openvino,torch_eager")
    engine = tilefuse.load("gan-digits", cache_dir=tmp_path, measure_seconds=30)
    before = engine.generate(20, seed=3)
    chosen = engine.warm_latents()
    assert any("a batch of latents" in why for why in chosen.why)
    assert any("chosen" in why for why in chosen.why)
    after = engine.generate(20, seed=3)
    assert np.abs(after.astype(int) - before).max() <= 1
    again = tilefuse.load("gan-digits", cache_dir=tmp_path)
    assert np.array_equal(again.generate(20, seed=3), after)
    with pytest.raises(ModelError, match="takes no latent"):
        tilefuse.load("espcn-x2").warm_latents()
