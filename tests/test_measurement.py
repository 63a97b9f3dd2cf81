"""Measuring: right before fast, within its time, and every candidate told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from torch import nn

import tilefuse
from tests.measuring import CLOCK, FakeBackend, FakeSession, backends, small_model
from tilefuse import candidates, finals
from tilefuse.backends import registry
from tilefuse.backends.base import Precision, Session
from tilefuse.calibration import picture, probe_size
from tilefuse.candidates import allowed_backends, precisions, thread_splits, tiles
from tilefuse.cost import cost_of
from tilefuse.cost_model import predicted_compile_seconds, predicted_image_seconds
from tilefuse.errors import UsageError
from tilefuse.measurement import Measurement, Subject, Task, measure, measured_table
from tilefuse.model import Model
from tilefuse.planner import input_shapes
from tilefuse.source import load_model


@pytest.fixture(scope="module")
def model() -> Model:
    return small_model()


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
    # Whoever reads it finds titles, and each candidate with a time, a difference and a verdict in columns of their own.
    assert len(table) == 1 + len(found)
    columns = [table[0].index(title) for title in ("candidate", "off fp32 by", "verdict")]
    right, slow, wrong, broken, refusing = ([line[at:].strip() for at in columns] for line in table[1:])
    assert right[0].startswith("right fp32, whole image, 1 thread")
    assert [each[2] for each in (right, slow)] == ["chosen", "slower, 5.00x"]
    assert right[1].startswith("nothing ")
    assert "10.0 ms" in right[0]
    assert wrong[0].startswith("wrong fp32")
    assert wrong[1].startswith("5 levels, ")
    assert wrong[2] == named["wrong", "fp32"].reason
    # What was not measured has no figures.
    assert " ms" not in refusing[0]
    assert refusing[1] == refusing[2] == named["refusing", "fp32"].reason
    assert "not finite" in broken[2]


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


def test_however_short_the_time_a_patch_is_checked(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    backends(monkeypatch, FakeBackend("only"))
    found = measure(task(model, budget_s=1e-9, subject=Subject(1, 500, 600, "uint8")))
    assert found[0].window == (160, 160)
    # Of a network too large for that, a patch with as much noise as shading.
    assert probe_size(model, 500, 600, 0.0) == (48, 48)
    drawn = picture(48, 48, 3, 1, np.dtype(np.uint8))[0]
    assert [drawn[y : y + 24, x : x + 24].std() > 65 for y in (0, 24) for x in (0, 24)] == [False, True, True, False]


def test_compiling_takes_a_start_and_little_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    # Measured: 14.4 s for 8 layers, 13.7 s for 74.
    for name in ("espcn-x4", "edsr-x2"):
        assert 10 < predicted_compile_seconds(load_model(name), "inductor") < 18
    # The first image waits for no compiler, however much it would save, unless there is nothing else.
    monkeypatch.setenv("TILEFUSE_BACKENDS", "inductor,torch_eager")
    monkeypatch.setattr("tilefuse.serving.predicted_image_seconds", lambda _, name, *__: 1 + 1e6 * (name != "inductor"))
    assert tilefuse.load("espcn-x2").serving.backend == "torch_eager"
    monkeypatch.setenv("TILEFUSE_BACKENDS", "inductor")
    assert tilefuse.load("espcn-x2").serving.backend == "inductor"


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


def test_a_gpu_is_given_windows_that_are_copied_beside_each_other(model: Model) -> None:
    assert thread_splits("triton_fused", 4, "cuda:0") == ((1, 4), (2, 4))
    assert thread_splits("triton_fused", 1, "cuda") == ((1, 1), (2, 1))
    assert thread_splits("triton_fused", 4, "cpu") == ((1, 4),)
    assert thread_splits("torch_eager", 4, "cuda") == thread_splits("onnxruntime", 4, "cuda") == ((1, 4),)
    # Not what fits the processor's cache.
    listed = tiles(model, 2048, 2048, "cuda")
    assert listed == (0, 1024, 512, 256)
    leader = candidates.Candidate("triton_fused", "fp16", 4)
    asked = task(model, device="cuda", threads=4, subject=Subject(1, 2048, 2048, "uint8"))
    variants = finals._variants(asked, leader)
    assert {(v.workers, v.threads) for v in variants if v.tile} == {(1, 4), (2, 4)}
    assert {(v.workers, v.threads) for v in variants if not v.tile} == {(1, 4)}


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


def test_predictions_grow_with_the_image_and_shrink_with_threads(model: Model) -> None:
    small, large = (predicted_image_seconds(model, "ncnn", "fp32", (1, edge, edge), 1) for edge in (200, 2000))
    assert 60 < large / small < 160
    # The backend's work is shared out; turning its result into pixels is one thread's.
    assert small / 2 < predicted_image_seconds(model, "ncnn", "fp32", (1, 200, 200), 2) < small
    one, two = (predicted_image_seconds(model, "openvino", "fp32", (1, 200, 200), threads) for threads in (1, 2))
    assert two == pytest.approx(one / 2)
    assert predicted_image_seconds(model, "openvino", "bf16", (1, 200, 200), 1) < small * 1.5


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


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_measured_with_has_shading_and_noise_wherever_a_patch_is_cut(channels: int) -> None:
    drawn = picture(100, 90, channels, 2, np.dtype(np.uint8))
    assert drawn.shape == (2, 100, 90, channels)
    np.testing.assert_array_equal(picture(40, 50, channels, 1, np.dtype(np.uint8))[0], drawn[0, :40, :50])
    spread = np.array([[drawn[0, y : y + 24, x : x + 24].std() for x in range(0, 72, 24)] for y in range(0, 72, 24)])
    noisy = np.indices(spread.shape).sum(0) % 2 == 1
    # Even noise has a deviation of 74; what lies between is a photograph's.
    assert (spread[noisy] > 65).all()
    assert np.median(spread[~noisy]) < 50


def test_a_gpu_holds_all_that_are_measured_at_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"b{n}" for n in range(4)]
    backends(monkeypatch, *(FakeBackend(name) for name in names))
    monkeypatch.setattr("tilefuse.entrants.peak_growth", lambda call, _: (call(), None))
    assert model.graph is not None
    live = cost_of(model.graph, input_shapes(model.graph, 1, (40, 60))).live_bytes
    for device, measured in (("cuda", 2), ("cpu", 4)):
        found = measure(task(model, device=device, backends=names, policy="fp32", memory=int(2 * 2.0 * live) + 1))
        assert sum(m.seconds is not None for m in found) == measured
        late = [m for m in found if m.seconds is None]
        assert all(m.reason == "not measured: the memory allowed does not hold it beside the others" for m in late)
