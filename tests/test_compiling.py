"""Sessions on a GPU: a budget of its memory, what is given back when it runs out, and what stays in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tilefuse
from tests.cuda import GIB, Device, device, random_image
from tests.measuring import small_module
from tilefuse import compiling, file_jobs
from tilefuse.compiling import Budget, SessionKey, check_held, memory_budget, session_cache
from tilefuse.cost import cost_of
from tilefuse.errors import BackendError, CapacityError, DeviceError
from tilefuse.graph import Shape
from tilefuse.planner import assumed_factor, input_shapes
from tilefuse.source import load_model

__all__ = ["device"]
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free")
IMAGE = random_image(40, 56)


def engine_of(module: nn.Module | None = None, **options: Any) -> tilefuse.Engine:
    given = {"device": "cuda", "backend": "gpu", "tile": 16, "measure_seconds": 0, **options}
    return tilefuse.load(small_module() if module is None else module, **given)


def expected(tile: int | str = 16) -> np.ndarray:
    return tilefuse.load(small_module(), device="cuda", backend="gpu", tile=tile, measure_seconds=0)(IMAGE)


def test_a_budget_is_four_fifths_of_what_is_free_and_asked_once(device: Device, monkeypatch: Any) -> None:
    assert memory_budget("cuda") == 8 * GIB
    # What torch keeps there unused is free for this process.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: GIB)
    assert memory_budget("cuda:0") == 12 * GIB * 4 // 5
    engine = engine_of()
    planned = engine.plan(400, 600)
    assert planned.memory_bytes == 12 * GIB * 4 // 5
    device.free = GIB
    assert engine.plan(400, 600) == planned
    assert Budget("cuda", 77)() == 77
    monkeypatch.setattr("tilefuse.machine.available_memory", lambda: 100)
    assert (Budget("cpu")(), Budget("cpu", 7)()) == (50, 7)


def test_a_device_budget_cuts_windows_and_does_not_count_this_machines_images(device: Device, monkeypatch: Any) -> None:
    peaks = []
    for memory in (16 << 20, 64 << 20, GIB):
        made = engine_of(tile="auto", memory=memory).plan(3000, 4000)
        assert made.peak_bytes <= made.memory_bytes == memory
        peaks.append(made.window)
    assert peaks[0] < peaks[1] < peaks[2]
    with pytest.raises(CapacityError, match="Allow at least"):
        engine_of(tile="auto", memory=1 << 10).plan(3000, 4000)
    # An image and its result of 180 MB are no load for a GPU, and too much for a machine with less.
    monkeypatch.setattr(compiling, "available_memory", lambda: 100 << 20)
    with pytest.raises(CapacityError, match=r"take 171\.7 MiB of this machine's memory, 100\.0 MiB are free.*cuda"):
        engine_of(memory=GIB).plan(3000, 4000)
    check_held(1 << 40, "cpu")


def test_files_are_streamed_by_this_machines_memory(device: Device, tmp_path: Path, monkeypatch: Any) -> None:
    tilefuse.images.write_image(
        tmp_path / "in.png", tilefuse.images.picture_from_array(random_image(60, 70)), overwrite=False
    )
    job = file_jobs.StreamJob(tmp_path / "in.png", tmp_path / "out.png")
    assert not file_jobs._streams(engine_of(memory=1 << 12), job)
    monkeypatch.setattr("tilefuse.machine.available_memory", lambda: 1 << 12)
    assert file_jobs._streams(engine_of(memory=GIB), job)


def windows_of(device: Device) -> int:
    device.runs.clear()
    engine_of()(IMAGE)
    return len(device.runs)


def test_memory_that_runs_out_at_any_window_gives_the_same_pixels_and_is_given_back_first(device: Device) -> None:
    undisturbed, total = expected(), windows_of(device)
    assert total == 12
    for at in range(total):
        device.runs.clear()
        device.compiled.clear()
        device.arenas.clear()
        device.held_when_emptied.clear()
        largest: list[Shape] = []

        def fail(run: int, shape: Shape, at: int = at, largest: list[Shape] = largest) -> None:
            if not largest:
                largest.append(shape)
            if run >= at and shape == largest[0]:
                raise OUT_OF_MEMORY

        device.fail = fail
        engine = engine_of()
        picture = tilefuse.images.picture_from_array(IMAGE)
        result, _, execution = engine.run_picture(picture)
        assert np.array_equal(result.pixels, undisturbed)
        assert execution.windows == total
        assert "memory ran out in windows of" in execution.notes[0]
        # Windows that were done are not run again, nor is what did not fit tried twice.
        assert device.runs.count(largest[0]) == at + 1
        assert len(device.compiled) == 2
        # Nothing of the arena that did not fit was left when its memory was given back, before the smaller one.
        assert device.held_when_emptied == [0]


def test_an_arena_that_does_not_fit_is_given_back_before_a_smaller_one(device: Device) -> None:
    undisturbed = expected()
    device.arenas.clear()
    device.held_when_emptied.clear()
    largest: list[Shape] = []

    def refuse(shape: Shape) -> None:
        largest.append(shape)
        if shape == largest[0]:
            raise MemoryError("triton_fused ran out of memory: CUDA out of memory")

    device.refuse = refuse
    assert np.array_equal(engine_of()(IMAGE), undisturbed)
    assert device.held_when_emptied == [0]


def test_after_four_shrinks_the_devices_numbers_are_told(device: Device) -> None:
    def fail(run: int, shape: Shape) -> None:
        raise OUT_OF_MEMORY

    device.fail = fail
    with pytest.raises(CapacityError, match=r"10\.0 GiB free on cuda \(gpu ran out of memory: CUDA out of memory") as e:
        engine_of(tile=32)(random_image(64, 64))
    assert e.value.exit_code == 5
    assert len(set(device.runs)) == len(device.runs) <= 5
    # Though the error is still there, and its causes with it, no arena is.
    assert device.held() == 0


FAULTS = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_any_other_failure_of_the_device_ends_the_job_at_once(device: Device, error: RuntimeError) -> None:
    total = windows_of(device)
    for at in range(total):
        device.runs.clear()

        def fail(run: int, shape: Shape, at: int = at) -> None:
            if run == at:
                raise error

        device.fail = fail
        with pytest.raises(DeviceError, match=r"gpu failed while running: (CUDA|cuDNN) error") as raised:
            engine_of()(IMAGE)
        assert raised.value.exit_code == 6
        assert len(device.runs) == at + 1
        assert "\n" not in str(raised.value)


def test_a_streamed_job_keeps_its_journal_when_the_device_fails(device: Device, tmp_path: Path) -> None:
    source, output = tmp_path / "in.npy", tmp_path / "out.npy"
    np.save(source, IMAGE)
    engine_of().run_file(source, tmp_path / "whole.npy")
    total = windows_of(device)
    for at in range(0, total, 3):
        device.runs.clear()

        def fail(run: int, shape: Shape, at: int = at) -> None:
            if run == at:
                raise FAULTS[0]

        device.fail = fail
        with pytest.raises(DeviceError, match="illegal memory access"):
            engine_of().run_file(source, output)
        assert not output.exists()
        assert (tmp_path / "out.npy.tilefuse-journal").exists()
        device.fail = lambda _, __: None
        report = engine_of().run_file(source, output, resume=True)
        # All but the windows in flight, of which one may have been waiting to be written.
        assert report.resumed in (at, at - 1)
        assert report.resumed + report.windows == total
        assert output.read_bytes() == (tmp_path / "whole.npy").read_bytes()
        output.unlink()


def test_a_streamed_job_goes_on_in_smaller_windows(device: Device, tmp_path: Path) -> None:
    source, output = tmp_path / "in.npy", tmp_path / "out.npy"
    np.save(source, IMAGE)
    engine_of().run_file(source, tmp_path / "whole.npy")
    total = windows_of(device)
    for at in (0, 5, total - 1):
        device.runs.clear()

        def fail(run: int, shape: Shape, at: int = at) -> None:
            if run >= at and shape == device.runs[0]:
                raise OUT_OF_MEMORY

        # With the first window failing, what comes next has another shape.
        device.fail = fail
        report = engine_of().run_file(source, output, overwrite=True)
        assert report.windows == total
        assert output.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_sessions_of_other_windows_are_given_up_where_they_would_pass_the_budget(device: Device) -> None:
    model = load_model(small_module())
    assert model.graph is not None
    cost = cost_of(model.graph, input_shapes(model.graph, 1, (64, 64)))
    one = int(assumed_factor("gpu") * cost.live_bytes) + cost.weight_bytes
    keys = [SessionKey("gpu", 1, size, "fp32") for size in ((64, 64), (64, 63), (63, 64))]
    for budget, kept in ((10 * one, 3), (2 * one, 2), (one, 1), (one // 2, 1)):
        device.arenas.clear()
        device.held_when_emptied.clear()
        sessions = session_cache(model, "cuda", lambda budget=budget: budget)  # type: ignore[misc]
        for key in keys:
            sessions.get(key)
        assert device.held() == kept
        # What was given up was given back before the next one was compiled.
        assert device.held_when_emptied == [kept - 1] * (3 - kept)
        assert sessions.get(keys[2]) is sessions.get(keys[2])
    on_cpu = session_cache(model, "cpu", lambda: 1)
    first = on_cpu.get(keys[0])
    on_cpu.get(keys[1])
    assert on_cpu.get(keys[0]) is first


def test_results_come_back_to_where_the_pixels_came_from(device: Device) -> None:
    """A session on a device whose tensors have no data here: it has to ask for them, and says it can't."""
    from tilefuse.backends.torch_eager import TorchEager

    model = load_model(small_module())
    eager = TorchEager()
    session = eager.compile(model, [(1, 3, 4, 5)], device="cpu", precision="fp32", threads=1)
    assert isinstance(session, tilefuse.backends.torch_eager.TorchSession)
    moved = type(session)("gpu", lambda x: x * 2, session.shapes, "meta", session.dtype, (), session.layout)
    with pytest.raises(DeviceError, match="Cannot copy out of meta tensor"):
        moved.run(torch.rand(1, 3, 4, 5))
    assert moved.run(torch.rand(1, 3, 4, 5, device="meta"))[0].device.type == "meta"


def test_a_gpu_that_is_not_there_is_6() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="finds no CUDA device"):
            tilefuse.load(small_module(), device="cuda")
