"""The row schedule in the engine: the same result as the whole image, where it is asked for and where it pays."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tilefuse
from tests.conftest import Compare
from tilefuse.errors import CapacityError, DeviceError, UsageError
from tilefuse.machine import parse_bytes
from tilefuse.memory import ArrayReader, ArrayWriter
from tilefuse.row_planner import row_grid
from tilefuse.row_windows import run_rows
from tilefuse.tiling import Window

IMAGE = np.random.default_rng(0).integers(0, 256, (75, 42, 3), np.uint8)


@pytest.fixture(scope="module")
def deep() -> nn.Module:
    """A network whose halo, 14 pixels, is deep beside the windows of a small memory."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(12))]
    return nn.Sequential(*layers, nn.Conv2d(8, 3, 3, padding=1))


@pytest.mark.parametrize("name", ["espcn-x4", "fsrcnn-x2", "restore-denoise"])
@pytest.mark.parametrize("tile", [8, 24])
def test_rows_give_what_the_whole_image_gives(name: str, tile: int, assert_close: Compare) -> None:
    image = IMAGE.astype(np.float32) / 255
    engine = tilefuse.load(name, schedule="rows", tile=tile)
    plan = engine.plan(75, 42)
    assert (plan.schedule, plan.backend, plan.exact, plan.windows > 1) == ("rows", "torch_eager", True, True)
    assert f"{plan.windows} stripes of {plan.window[0]} rows" in str(plan)
    whole = tilefuse.load(name, backend="torch_eager", tile=0)
    assert_close(torch.from_numpy(engine(image)), torch.from_numpy(whole(image)))


def test_gray_alpha_and_one_pixel() -> None:
    rows = tilefuse.load("espcn-x4", schedule="rows", tile=8)
    whole = tilefuse.load("espcn-x4", backend="torch_eager", tile=0)
    for image in (IMAGE[..., 0], np.concatenate((IMAGE, IMAGE[..., :1]), 2), IMAGE[:1, :1], IMAGE[:, :1]):
        assert np.abs(rows(image).astype(int) - whole(image)).max() <= 1


def test_a_pass_may_begin_in_the_middle(deep: nn.Module) -> None:
    model = tilefuse.load(deep).model
    assert model.graph is not None
    cut = row_grid(model, 75, 42, 8)
    assert len(cut) > 3
    result = np.zeros((1, *cut.output, 3), np.uint8)
    # Each window that does not follow the one before it begins another pass.
    order = [2, 3, 0, 1, *range(4, len(cut))]
    run_rows(model.graph, cut, ArrayReader(IMAGE[None], 3), ArrayWriter(result), "cpu", None, order)
    whole = tilefuse.load(deep, backend="torch_eager", tile=0)(IMAGE)
    assert np.abs(result[0].astype(int) - whole).max() <= 1


def test_readers_serve_one_thread_at_a_time(deep: nn.Module) -> None:
    """A pass that begins in the middle reads rows itself, while the next window is being read."""
    model = tilefuse.load(deep).model
    assert model.graph is not None
    cut = row_grid(model, 75, 42, 8)
    inner, busy, overlaps, reads = ArrayReader(IMAGE[None], 3), threading.Lock(), list[int](), list[int]()

    class Reader:
        def read(self, window: Window) -> Tensor:
            reads.append(window.y.start)
            if not busy.acquire(blocking=False):
                overlaps.append(window.y.start)
                return inner.read(window)
            try:
                time.sleep(0.02)
                return inner.read(window)
            finally:
                busy.release()

    writer = ArrayWriter(np.zeros((1, *cut.output, 3), np.uint8))
    order = list(range(2, len(cut), 2))
    run_rows(model.graph, cut, Reader(), writer, "cpu", None, order)
    assert len(reads) > len(order), "no pass had to read rows itself"
    assert overlaps == []


def test_rows_take_over_where_windows_would_overlap_too_much(deep: nn.Module) -> None:
    plan = tilefuse.load(deep, memory="2MiB").plan(400, 400)
    assert plan.schedule == "rows"
    assert any("times as fast as windows of" in why for why in plan.why)
    assert plan.peak_bytes <= parse_bytes("2MiB")
    assert tilefuse.load(deep, memory="2MiB", schedule="windows").plan(400, 400).schedule == "windows"
    assert tilefuse.load("espcn-x4", memory="64MiB").plan(400, 400).schedule == "windows"


def test_rows_take_over_where_no_window_fits(deep: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    tall = (2000, 60)
    with pytest.raises(CapacityError, match="no smaller window helps"):
        tilefuse.load(deep, memory="950KiB", schedule="windows").plan(*tall)
    plan = tilefuse.load(deep, memory="950KiB").plan(*tall)
    assert plan.schedule == "rows"
    assert any("no window fits the memory" in why for why in plan.why)
    with pytest.raises(CapacityError, match=r"stripes of 4 rows needs about .* Allow at least"):
        tilefuse.load(deep, memory="750KiB", schedule="rows").plan(*tall)
    monkeypatch.setenv("TILEFUSE_BACKENDS", "openvino")
    with pytest.raises(CapacityError, match="no smaller window helps"):
        tilefuse.load(deep, memory="950KiB").plan(*tall)


def test_what_sees_the_whole_image_can_not_go_by_rows() -> None:
    with pytest.raises(CapacityError, match=r"instance_norm.*Use schedule whole"):
        tilefuse.load("style-mosaic", schedule="rows").plan(64, 64)


@pytest.mark.parametrize(
    "contradiction", [{"backend": "openvino"}, {"precision": "bf16"}, {"halo": 3}, {"tile": 0}], ids=str
)
def test_what_rows_exclude_is_refused(contradiction: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"schedule rows .* contradicts {next(iter(contradiction))}"):
        tilefuse.load("espcn-x4", schedule="rows", **contradiction)


def test_a_value_that_is_not_finite_is_told() -> None:
    module = nn.Conv2d(3, 3, 3, padding=1)
    with torch.no_grad():
        module.weight.fill_(1e10)
    with pytest.raises(DeviceError, match="not finite in fp32"):
        tilefuse.load(module, schedule="rows", tile=8)(np.full((30, 20, 3), 1e30, np.float32))


def test_a_streamed_job_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", IMAGE)
    with pytest.raises(UsageError, match="held in memory"):
        tilefuse.load("espcn-x4", schedule="rows").run_file(tmp_path / "in.npy", tmp_path / "out.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]
