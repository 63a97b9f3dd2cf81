"""Memory that runs out at any window: the same pixels as undisturbed, or an error with the numbers."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.networks import exact_graph
from tilefuse.backends.base import Session
from tilefuse.capture import from_module
from tilefuse.errors import CapacityError, DeviceError
from tilefuse.execute import Execution, execute
from tilefuse.footprint import Footprint, footprint
from tilefuse.graph import Graph
from tilefuse.memory import ArrayReader, ArrayWriter
from tilefuse.runners import FloatRunner
from tilefuse.shrinking import MOST_SHRINKS, ShrinkingRunner
from tilefuse.tiling import grid

TILE = 16


class Failing:
    """A graph that fails in run number `at`, and in the `more` runs after it of windows larger than `fits` pixels."""

    def __init__(self, graph: Graph, at: int, error: Exception, fits: int) -> None:
        self.graph, self.at, self.error, self.fits = graph, at, error, fits
        self.count = -1
        self.lock = threading.Lock()
        self.shapes: list[tuple[int, ...]] = []

    def run(self, *inputs: Tensor) -> list[Tensor]:
        with self.lock:
            self.count += 1
            failing = self.count >= self.at and inputs[0].shape[2] * inputs[0].shape[3] > self.fits
            self.shapes.append(tuple(inputs[0].shape[2:]))
        if failing:
            raise self.error
        return self.graph.evaluate(*inputs)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return exact_graph()


@pytest.fixture(scope="module")
def found(graph: Graph) -> Footprint:
    return footprint(graph)


IMAGE = np.random.default_rng(0).integers(0, 256, (1, 50, 41, 1)).astype(np.float32) / 256


def run(session: Session, found: Footprint, workers: int = 1) -> tuple[np.ndarray, Execution, ShrinkingRunner[Any]]:
    cut = grid(50, 41, TILE, found)
    runner: ShrinkingRunner[Any] = ShrinkingRunner(lambda _: FloatRunner(session), cut.window, found)
    result = np.full((1, *cut.output, 1), np.nan, np.float32)
    done = execute(cut, runner, ArrayReader(IMAGE, 1), ArrayWriter(result), workers=workers)
    return result, done, runner


@pytest.mark.parametrize("workers", [1, 3])
def test_memory_that_runs_out_at_any_window_changes_no_pixel(graph: Graph, found: Footprint, workers: int) -> None:
    undisturbed, done, _ = run(Failing(graph, 10**9, MemoryError(), 0), found, workers)
    assert done.windows == 9
    assert np.array_equal(undisturbed[0, :, :, 0], graph.evaluate(torch.from_numpy(IMAGE[..., 0])[None])[0][0, 0])
    for at in range(done.windows):
        session = Failing(graph, at, MemoryError("injected"), 200)
        result, execution, runner = run(session, found, workers)
        assert np.array_equal(result, undisturbed)
        assert execution.windows == done.windows
        assert "memory ran out in windows of 20x20" in runner.notes[0]
        # Windows that were done are not run again, and those to come are cut at once.
        whole = [shape for shape in session.shapes if shape == (20, 20)]
        assert at < len(whole) <= at + workers


def test_it_shrinks_until_it_fits(graph: Graph, found: Footprint) -> None:
    undisturbed = run(Failing(graph, 10**9, MemoryError(), 0), found)[0]
    session = Failing(graph, 0, MemoryError(), 50)
    result, _, runner = run(session, found)
    assert np.array_equal(result, undisturbed)
    assert "20x20, 14x14, 9x9" in runner.notes[0]


def test_after_four_shrinks_the_numbers_are_told(graph: Graph, found: Footprint) -> None:
    session = Failing(graph, 3, MemoryError("no room"), 0)
    with pytest.raises(CapacityError, match=r"windows of 20x20, 14x14.*free in.*no room.*memory="):
        run(session, found)
    assert len(set(session.shapes)) <= 1 + MOST_SHRINKS


def test_any_other_error_is_not_tried_again(graph: Graph, found: Footprint) -> None:
    for at in (0, 4, 8):
        session = Failing(graph, at, DeviceError("the device is gone"), 0)
        with pytest.raises(DeviceError, match="gone"):
            run(session, found)
        assert session.count == at


def test_a_window_that_must_stay_whole_is_refused() -> None:
    class Normed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean((2, 3), keepdim=True)

    graph = from_module(Normed(), torch.rand(1, 1, 8, 8))
    found = footprint(graph)
    runner: ShrinkingRunner[Tensor] = ShrinkingRunner(
        lambda _: FloatRunner(Failing(graph, 0, MemoryError(), 0)), (32, 32), found
    )
    with pytest.raises(CapacityError, match="it can't be cut smaller: mean over space"):
        runner.run(torch.rand(1, 1, 32, 32))


def test_a_halo_that_was_asked_for_holds_in_the_parts_as_well() -> None:
    class Normed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean((2, 3), keepdim=True)

    graph = from_module(Normed(), torch.rand(1, 1, 8, 8))
    made: list[tuple[int, int]] = []

    def make(shape: tuple[int, int]) -> FloatRunner:
        made.append(shape)
        return FloatRunner(Failing(graph, 0, MemoryError(), 500))

    runner: ShrinkingRunner[Tensor] = ShrinkingRunner(make, (32, 32), footprint(graph), halo_px=2)
    result, finite = runner.run(torch.rand(1, 1, 32, 32))
    assert finite
    assert result.shape == (1, 1, 32, 32)
    assert made == [(32, 32), (20, 20)]


def test_threads_that_run_out_together_shrink_once(found: Footprint, graph: Graph) -> None:
    together = threading.Barrier(2, timeout=30)

    class Full:
        def run(self, *inputs: Tensor) -> list[Tensor]:
            if inputs[0].shape[2] == 20:
                together.wait()
                raise MemoryError
            return graph.evaluate(*inputs)

    forgotten: list[tuple[int, int]] = []
    runner: ShrinkingRunner[Tensor] = ShrinkingRunner(
        lambda _: FloatRunner(Full()), (20, 20), found, forget=forgotten.append
    )
    threads = [threading.Thread(target=runner.run, args=(torch.rand(1, 1, 20, 20),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert forgotten == [(20, 20)]
    assert runner.notes == ("memory ran out in windows of 20x20: smaller ones were run in their place",)


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_one_part_that_is_not_finite_is_enough(found: Footprint, bad: int) -> None:
    parts: list[bool] = []

    class Some:
        def run(self, tile: np.ndarray) -> tuple[np.ndarray, bool]:
            if tile.shape[1] > 16:
                raise MemoryError
            parts.append(len(parts) != bad)
            return tile.repeat(2, 1).repeat(2, 2), parts[-1]

        def crop(self, result: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
            return result[:, rows, columns]

    runner: ShrinkingRunner[np.ndarray] = ShrinkingRunner(lambda _: Some(), (20, 20), found)
    assert not runner.run(np.zeros((1, 20, 20, 1), np.uint8))[1]
    assert len(parts) >= 4


def test_integers_are_put_together_too(found: Footprint) -> None:
    class Doubled:
        """Repeats every pixel; out of memory in large windows."""

        def run(self, tile: np.ndarray) -> tuple[np.ndarray, bool]:
            if tile.shape[1] * tile.shape[2] > 200:
                raise MemoryError
            return tile.repeat(2, 1).repeat(2, 2), True

        def crop(self, result: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
            return result[:, rows, columns]

    forgotten: list[tuple[int, int]] = []
    runner: ShrinkingRunner[np.ndarray] = ShrinkingRunner(lambda _: Doubled(), (20, 24), found, forget=forgotten.append)
    tile = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), np.uint8)
    result, finite = runner.run(tile)
    assert finite
    assert np.array_equal(result, tile.repeat(2, 1).repeat(2, 2))
    assert forgotten[0] == (20, 24)


def test_smaller_windows_wait_for_the_larger_ones_under_way(found: Footprint, graph: Graph) -> None:
    """One thread's window does not fit beside another's: what that one holds is free before a smaller one begins."""
    began, failed = threading.Event(), threading.Event()
    order: list[str] = []

    class Large:
        def run(self, *inputs: Tensor) -> list[Tensor]:
            if not began.is_set():
                began.set()
                assert failed.wait(30)
                # Time for the other thread to go on too early.
                failed.clear()
                failed.wait(0.2)
                order.append("large ends")
                return graph.evaluate(*inputs)
            raise MemoryError

    class Small:
        def run(self, *inputs: Tensor) -> list[Tensor]:
            order.append("small")
            return graph.evaluate(*inputs)

    def make(shape: tuple[int, int]) -> FloatRunner:
        return FloatRunner(Large() if shape == (20, 20) else Small())

    runner: ShrinkingRunner[Tensor] = ShrinkingRunner(make, (20, 20), found, forget=lambda _: failed.set())
    first = threading.Thread(target=runner.run, args=(torch.rand(1, 1, 20, 20),))
    first.start()
    assert began.wait(30)
    image = torch.rand(1, 1, 20, 20)
    assert torch.equal(runner.run(image)[0], graph.evaluate(image)[0])
    first.join()
    assert order[0] == "large ends"
    assert set(order[1:]) == {"small"}
