"""The choice: right before fast, measured once, recorded, and never changed under way."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tilefuse
from tilefuse import candidates, measurement, selection, timing
from tilefuse.backends import registry
from tilefuse.backends.base import Precision, Session
from tilefuse.candidates import Candidate, allowed_backends, precisions, thread_splits, tiles
from tilefuse.cost_model import predicted_image_seconds
from tilefuse.errors import BackendError, ModelError, UsageError
from tilefuse.graph import Shape
from tilefuse.measurement import Measurement, Subject, Task, measure, measured_table
from tilefuse.model import Model
from tilefuse.selection import bucket
from tilefuse.source import load_model


@dataclass
class Clock:
    """A clock that stands still until a fake backend takes its time: no load on the machine changes a choice."""

    now: float = 0.0

    def advance(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds


CLOCK = Clock()


@dataclass(frozen=True)
class FakeSession:
    """The model in fp32 torch, later by `delay` and other by `error`."""

    model: Model
    delay: float
    error: float

    def run(self, *inputs: Tensor) -> list[Tensor]:
        CLOCK.now += self.delay
        assert self.model.graph is not None
        result = self.model.graph.evaluate(*inputs)[0].clone()
        result[..., :1, :1] += self.error
        return [result]


@dataclass(frozen=True)
class FakeBackend:
    """A backend with a speed and a fault."""

    name: str
    delay: float = 0.001
    error: float = 0.0
    compiled: tuple[list[Any], ...] = ([],)
    refuses: str = ""

    def available(self) -> str | None:
        return None

    def refusal(self, model: Model, device: str, precision: Precision) -> str | None:
        return None

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        if self.refuses:
            raise BackendError(self.refuses)
        self.compiled[0].append((shapes, precision))
        return FakeSession(model, self.delay, self.error)


def backends(monkeypatch: pytest.MonkeyPatch, *fakes: FakeBackend) -> None:
    """Put fakes in the place of all backends, and their clock in the place of the machine's."""
    CLOCK.now = 0.0
    monkeypatch.setattr(measurement, "time", SimpleNamespace(perf_counter=lambda: CLOCK.now))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: CLOCK.now, sleep=CLOCK.advance))
    monkeypatch.setattr(registry, "BACKENDS", {fake.name: fake for fake in fakes})


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))


@pytest.fixture(scope="module")
def model(module: nn.Module) -> Model:
    return load_model(module)


def task(model: Model, budget_s: float = 30.0, **changes: Any) -> Task:
    fields = {
        "model": model,
        "subject": Subject(1, 40, 60, "uint8"),
        "device": "cpu",
        "backends": tuple(registry.BACKENDS),
        "policy": "auto",
        "tile": None,
        "threads": 1,
        "memory": 1 << 30,
        "budget_s": budget_s,
    }
    return Task(**{**fields, **changes})


def by_backend(found: Sequence[Measurement]) -> dict[tuple[str, str], Measurement]:
    return {(m.candidate.backend, m.candidate.precision): m for m in reversed(found)}


def test_the_fastest_that_is_right_wins(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    backends(
        monkeypatch,
        FakeBackend("slow", delay=0.05),
        FakeBackend("right", delay=0.01),
        FakeBackend("wrong", error=0.02),
        FakeBackend("broken", error=float("nan")),
        FakeBackend("refusing", refuses="it says one provider and runs another"),
    )
    monkeypatch.setattr(candidates, "has_bf16", lambda: False)
    found = measure(task(model))
    assert found[0].candidate.backend == "right"
    named = by_backend(found)
    assert "levels of 8 bits" in (named["wrong", "fp32"].reason or "")
    assert named["wrong", "fp32"].levels == pytest.approx(5, abs=1)
    assert named["broken", "fp32"].reason is not None
    assert "one provider and runs another" in (named["refusing", "fp32"].reason or "")
    assert named["slow", "fp32"].reason is None
    table = measured_table(found)
    assert "right fp32" in table[0]
    assert "chosen" in table[0]
    assert len(table) == len(found)
    # What was not measured has no figures, and says so once.
    assert f"refusing fp32, whole image, 1 thread: {named['refusing', 'fp32'].reason}" in table
    assert sum("equal, chosen" in line for line in table) == 1


def test_fp32_of_floats_is_held_to_1e_4(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    backends(monkeypatch, FakeBackend("near", error=5e-5), FakeBackend("off", error=3e-4))
    for dtype in ("float32", "uint16"):
        found = by_backend(measure(task(model, subject=Subject(1, 24, 24, dtype))))
        assert found["near", "fp32"].reason is None
        assert found["off", "fp32"].reason is not None


@pytest.mark.parametrize(("error", "right"), [(0.9 / 255, True), (2.1 / 255, False)])
def test_reduced_precision_serves_only_within_a_level(
    model: Model, monkeypatch: pytest.MonkeyPatch, error: float, right: bool
) -> None:
    class Reduced(FakeBackend):
        def compile(self, *args: Any, precision: Precision, **options: Any) -> Session:
            return FakeSession(args[0], 0.01 if precision == "bf16" else 0.02, error if precision == "bf16" else 0.0)

    backends(monkeypatch, Reduced("both"))
    monkeypatch.setattr(candidates, "has_bf16", lambda: True)
    found = measure(task(model))
    assert (found[0].candidate.precision == "bf16") == right
    assert (by_backend(found)["both", "bf16"].reason is None) == right


def test_reduced_precision_is_for_8_bits_and_for_machines_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "has_bf16", lambda: True)
    assert precisions("auto", "uint8", "cpu") == ("fp32", "bf16")
    assert precisions("auto", "uint16", "cpu") == precisions("auto", "float32", "cpu") == ("fp32",)
    assert precisions("bf16", "float32", "cpu") == ("bf16",)
    assert precisions("fp32", "uint8", "cpu") == ("fp32",)
    monkeypatch.setattr(candidates, "has_bf16", lambda: False)
    assert precisions("auto", "uint8", "cpu") == ("fp32",)


def test_the_time_budget_holds(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: tuple[list[Any], ...] = ([],)
    backends(monkeypatch, *(FakeBackend(f"b{n}", delay=0.15, compiled=compiled) for n in range(40)))
    found = measure(task(model, budget_s=1.0))
    assert CLOCK.now < 2
    assert 1 < len(compiled[0]) < 40
    assert found[0].reason is None
    assert any("too little time" in (m.reason or "") for m in found)


def test_a_window_larger_than_the_memory_is_not_tried(model: Model) -> None:
    found = measure(task(model, memory=1 << 10, backends=("torch_eager",)))
    assert all("more memory than is allowed" in (m.reason or "") or m.candidate.precision != "fp32" for m in found)


def test_tiles_and_threads_worth_trying(model: Model) -> None:
    listed = tiles(model, 2000, 3000)
    assert listed[0] == 0
    assert list(listed[1:]) == sorted(listed[1:], reverse=True)
    assert 1 < len(listed) <= 4
    assert tiles(load_model(nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3))), 2000, 3000) == (0,)
    assert thread_splits("openvino", 2) == ((1, 2), (2, 1))
    assert thread_splits("ncnn", 2) == ((1, 2),)
    assert thread_splits("openvino", 1) == ((1, 1),)


def test_all_the_libraries_of_this_machine(model: Model) -> None:
    found = measure(task(model, backends=("openvino", "onnxruntime", "torch_eager", "ncnn"), threads=2))
    assert found[0].reason is None
    assert {m.candidate.backend for m in found if m.seconds} >= {"torch_eager"}
    assert all(m.levels is not None and m.levels <= 1 for m in found if m.reason is None)


@pytest.mark.parametrize("name", ["TILEFUSE_BACKENDS"])
def test_the_environment_restricts_backends(name: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "torch_eager, openvino")
    assert allowed_backends("auto") == ("torch_eager", "openvino")
    assert allowed_backends("ncnn") == ("ncnn",)
    monkeypatch.setenv(name, "torch_eager")
    assert tilefuse.load("espcn-x2").serving.backend == "torch_eager"
    monkeypatch.setenv(name, "cudnn")
    with pytest.raises(UsageError, match=r"cudnn.*torch_eager"):
        allowed_backends("auto")


def test_shapes_share_buckets() -> None:
    assert bucket(Subject(1, 1080, 1920, "uint8")) == Subject(1, 2048, 2048, "uint8")
    assert bucket(Subject(1, 64, 65, "uint8")) == Subject(1, 64, 128, "uint8")
    assert bucket(Subject(3, 1, 90_000, "float32")) == Subject(3, 64, 4096, "float32")


def test_predictions_grow_with_the_image_and_shrink_with_threads(model: Model) -> None:
    small, large = (predicted_image_seconds(model, "ncnn", "fp32", (1, edge, edge), 1) for edge in (200, 2000))
    assert 60 < large / small < 160
    # The backend's work is shared out; turning its result into pixels is one thread's.
    assert small / 2 < predicted_image_seconds(model, "ncnn", "fp32", (1, 200, 200), 2) < small
    one, two = (predicted_image_seconds(model, "openvino", "fp32", (1, 200, 200), threads) for threads in (1, 2))
    assert two == pytest.approx(one / 2)
    assert predicted_image_seconds(model, "openvino", "bf16", (1, 200, 200), 1) < small * 1.5


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


def test_each_candidate_is_told_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # There is time for the patch, and not for the subject.
    backends(monkeypatch, FakeBackend("slow", delay=0.15), FakeBackend("slower", delay=0.16))
    found = measure(task(model, budget_s=1.0, subject=Subject(1, 700, 900, "uint8"), threads=2))
    assert found[0].seconds is not None
    told = [measurement.candidate for measurement in found]
    assert sorted(set(map(str, told))) == sorted(map(str, told))


def test_onnx_runtime_that_falls_back_is_disqualified(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: ["AzureExecutionProvider"])
    (found,) = measure(task(model, backends=("onnxruntime",), policy="fp32"))
    assert "fell back to AzureExecutionProvider" in (found.reason or "")


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
