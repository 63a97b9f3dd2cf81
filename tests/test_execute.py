"""Running windows: several workers give the bits of one, and what goes wrong in one of them is told."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tilefuse
from tilefuse.errors import CapacityError, DeviceError
from tilefuse.execute import execute
from tilefuse.footprint import footprint
from tilefuse.memory import PixelReader, PixelWriter
from tilefuse.source import load_model
from tilefuse.tiling import Grid, grid

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 40, 52, 3), np.uint8)


class Doubling:
    """Repeats pixels; fails, waits or overflows where it is told to."""

    def __init__(self, *, fail: BaseException | None = None, at: int = -1, wait: float = 0.0, finite: bool = True):
        self.fail, self.at, self.wait, self.finite = fail, at, wait, finite
        self.count = 0
        self.together = self.most = 0
        self.lock = threading.Lock()

    def run(self, tile: np.ndarray) -> tuple[np.ndarray, bool]:
        with self.lock:
            mine, self.count = self.count, self.count + 1
            self.together += 1
            self.most = max(self.most, self.together)
        time.sleep(self.wait)
        with self.lock:
            self.together -= 1
        if mine == self.at and self.fail is not None:
            raise self.fail
        return tile.repeat(2, 1).repeat(2, 2), self.finite or mine != self.at

    def crop(self, result: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        return result[:, rows, columns]


@pytest.fixture(scope="module")
def cut() -> Grid:
    upscale = load_model(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)))
    assert upscale.graph is not None
    return grid(40, 52, 10, footprint(upscale.graph))


def run(cut: Grid, runner: Doubling, **options: Any) -> tuple[np.ndarray, Any]:
    result = np.zeros((1, 80, 104, 3), np.uint8)
    return result, execute(cut, runner, PixelReader(IMAGE), PixelWriter(result), **options)


@pytest.mark.parametrize("workers", [1, 2, 5, 64])
def test_any_number_of_workers_writes_every_pixel_once(cut: Grid, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    runner = Doubling()
    result, done = run(cut, runner, workers=workers, progress=lambda *step: seen.append(step))
    assert np.array_equal(result, IMAGE.repeat(2, 1).repeat(2, 2))
    assert done.windows == runner.count == len(cut)
    assert seen == [(number + 1, len(cut)) for number in range(len(cut))]


def test_workers_run_at_once(cut: Grid) -> None:
    runner = Doubling(wait=0.05)
    run(cut, runner, workers=3, windows=range(6))
    assert runner.most > 1
    alone = Doubling(wait=0.001)
    run(cut, alone, windows=range(6))
    assert alone.most == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_in_a_window_ends_the_run(cut: Grid, workers: int) -> None:
    for fail, named in ((DeviceError("gone"), DeviceError), (MemoryError("full"), CapacityError)):
        runner = Doubling(fail=fail, at=4)
        with pytest.raises(named):
            run(cut, runner, workers=workers)
        assert runner.count < len(cut)
    assert threading.active_count() < 50


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_the_caller_ends_the_run(cut: Grid, workers: int) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    runner = Doubling()
    with pytest.raises(KeyboardInterrupt):
        run(cut, runner, workers=workers, progress=stop)
    # One more may be under way for each that is computed at once, and the one that is read meanwhile.
    assert runner.count <= workers + 1


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_not_finite_is_run_again_and_counted(cut: Grid, workers: int) -> None:
    result, done = run(cut, Doubling(finite=False, at=5), workers=workers, exact=Doubling)
    assert done.rerun_fp32 == 1
    assert np.array_equal(result, IMAGE.repeat(2, 1).repeat(2, 2))
    with pytest.raises(DeviceError, match="not finite in fp32"):
        run(cut, Doubling(finite=False, at=5), workers=workers)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch_eager", "ncnn"])
@pytest.mark.thorough
def test_2_8_and_32_threads_on_one_engine_equal_serial(backend: str) -> None:
    torch.manual_seed(0)
    engine = tilefuse.load(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)),
        backend=backend,
        tile=9,
    )
    images = [np.random.default_rng(i).integers(0, 256, (14 + i % 3, 17, 3), np.uint8) for i in range(32)]
    serial = [engine(image) for image in images]
    for threads in (2, 8, 32):
        with ThreadPoolExecutor(threads) as pool:
            for expected, result in zip(serial, pool.map(engine, images), strict=True):
                assert np.array_equal(result, expected)
