"""Windows in batches: the pixels of single ones, whatever goes wrong in any of them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tilefuse
from tests import vocabulary
from tests.networks import exact_graph
from tilefuse import candidates, selection
from tilefuse.backends import registry
from tilefuse.backends.pixels import compile_pixels
from tilefuse.batching import Batch
from tilefuse.candidates import Candidate, batches
from tilefuse.capture import from_module
from tilefuse.errors import CapacityError, DeviceError
from tilefuse.execute import Execution, execute
from tilefuse.footprint import Footprint, footprint
from tilefuse.graph import Graph
from tilefuse.measurement import Measurement, Subject, Task, measure
from tilefuse.memory import ArrayReader, ArrayWriter
from tilefuse.model import Model
from tilefuse.planner import Request, Serving, plan
from tilefuse.runners import FloatRunner
from tilefuse.shrinking import ShrinkingRunner
from tilefuse.source import load_model
from tilefuse.tiling import grid

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 50, 41, 1)).astype(np.float32) / 256
TILE, WINDOWS = 16, 9


class Watched:
    """A graph that does something to a run when a window of a given place in the image is in it."""

    def __init__(self, graph: Graph, harm: Any = None, at: int = -1, largest: int = 10**9) -> None:
        self.graph, self.harm, self.largest = graph, harm, largest
        self.marked = None if at < 0 else window_of(graph, at)
        self.batches: list[int] = []
        self.lock = threading.Lock()

    def run(self, *inputs: Tensor) -> list[Tensor]:
        with self.lock:
            self.batches.append(len(inputs[0]))
        if len(inputs[0]) > self.largest:
            raise MemoryError("injected")
        result = self.graph.evaluate(*inputs)[0]
        for place, window in enumerate(inputs[0]):
            if self.marked is not None and torch.equal(window, self.marked):
                if isinstance(self.harm, BaseException):
                    raise self.harm
                result[place, 0, 3, 3] = self.harm
        return [result]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return exact_graph()


def window_of(graph: Graph, index: int) -> Tensor:
    return ArrayReader(IMAGE, 1).read(grid(50, 41, TILE, footprint(graph))[index])[0]


def run(
    session: Watched, *, size: int, workers: int = 1, exact: Watched | None = None
) -> tuple[np.ndarray, Execution, Batch[Tensor]]:
    found: Footprint = footprint(session.graph)
    cut = grid(50, 41, TILE, found)
    result = np.full((1, *cut.output, 1), np.nan, np.float32)
    batch: Batch[Tensor] = Batch(size, lambda: FloatRunner(session))
    alone: ShrinkingRunner[Tensor] = ShrinkingRunner(lambda _: FloatRunner(session), cut.window, found)
    done = execute(
        cut,
        alone,
        ArrayReader(IMAGE, 1),
        ArrayWriter(result),
        workers=workers,
        batch=batch,
        exact=None if exact is None else lambda: FloatRunner(exact),
    )
    return result, done, batch


@pytest.fixture(scope="module")
def undisturbed(graph: Graph) -> np.ndarray:
    return graph.evaluate(torch.from_numpy(IMAGE[..., 0])[None])[0][0, 0].numpy()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("size", [2, 4, 9, 20])
def test_batches_give_the_pixels_of_single_windows(
    graph: Graph, undisturbed: np.ndarray, size: int, workers: int
) -> None:
    session = Watched(graph)
    result, done, batch = run(session, size=size, workers=workers)
    assert np.array_equal(result[0, ..., 0], undisturbed)
    assert done.windows == WINDOWS
    assert batch.notes == ()
    # One compiled shape serves the last, smaller group too; a group of one goes alone.
    left = WINDOWS % size
    assert sorted(session.batches) == sorted([size] * (-(-WINDOWS // size) - (left == 1)) + [1] * (left == 1))


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_that_runs_out_at_any_window_changes_no_pixel(
    graph: Graph, undisturbed: np.ndarray, workers: int
) -> None:
    for at in range(WINDOWS):
        session = Watched(graph, MemoryError("injected"), at)
        # The marked window never fits as it is: its batch is given up, and it alone is cut smaller.
        result, done, batch = run(session, size=4, workers=workers)
        assert np.array_equal(result[0, ..., 0], undisturbed)
        assert done.windows == WINDOWS
        # The ninth window is a group of its own.
        assert bool(batch.notes) == (at < 8)


def test_batches_that_do_not_fit_are_given_up_once(graph: Graph, undisturbed: np.ndarray) -> None:
    session = Watched(graph, largest=1)
    result, _, batch = run(session, size=4)
    assert np.array_equal(result[0, ..., 0], undisturbed)
    assert session.batches == [4] + [1] * WINDOWS
    assert batch.notes == ("memory ran out in batches of 4 windows: they were run one by one",)


@pytest.mark.parametrize("kind", ["float", "integer"])
def test_windows_of_several_images_stay_together(kind: str) -> None:
    class Negated:
        def run(self, tile: Any) -> tuple[Any, bool]:
            assert len(tile) == 8, "not the compiled shape"
            return 255 - tile, True

        def crop(self, result: Any, rows: slice, columns: slice) -> Any:
            return result

    shape = (2, 3, 5, 4) if kind == "float" else (2, 5, 4, 3)
    tiles: list[Any] = list(np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(np.uint8))
    if kind == "float":
        tiles = [torch.from_numpy(tile).float() for tile in tiles]
    results = Batch(4, Negated).run(tiles)
    assert results is not None
    assert len(results) == len(tiles)
    for tile, result in zip(tiles, results, strict=True):
        assert type(result) is type(tile)
        assert np.array_equal(result, 255 - tile)


def test_what_was_compiled_for_a_batch_that_does_not_fit_is_given_up_once() -> None:
    class Full:
        def run(self, tile: Tensor) -> tuple[Tensor, bool]:
            raise MemoryError

        def crop(self, result: Tensor, rows: slice, columns: slice) -> Tensor:
            return result

    events: list[str] = []

    def make() -> Full:
        events.append("made")
        return Full()

    batch: Batch[Tensor] = Batch(2, make, lambda: events.append("forgotten"))
    assert [batch.run([torch.zeros(1, 1, 4, 4)] * 2) for _ in range(2)] == [None, None]
    assert events == ["made", "forgotten"]


@pytest.mark.parametrize("harm", [float("nan"), float("inf")])
def test_a_window_that_is_not_finite_is_redone_in_fp32_alone(
    graph: Graph, undisturbed: np.ndarray, harm: float
) -> None:
    for at in range(WINDOWS):
        exact = Watched(graph)
        result, done, _ = run(Watched(graph, harm, at), size=4, exact=exact)
        assert np.array_equal(result[0, ..., 0], undisturbed)
        assert done.rerun_fp32 == 1
        assert exact.batches == [1]


def test_what_is_not_finite_in_fp32_is_an_error(graph: Graph) -> None:
    for at in (0, 5, 8):
        with pytest.raises(DeviceError, match=f"window {at} of 9 .*not finite in fp32"):
            run(Watched(graph, float("nan"), at), size=4)


def test_any_other_error_is_not_tried_again(graph: Graph) -> None:
    for at in range(8):
        session = Watched(graph, DeviceError("the device is gone"), at)
        with pytest.raises(DeviceError, match="gone"):
            run(session, size=4)
        assert session.batches == [4] * (at // 4 + 1)


def test_a_window_that_was_not_finite_before_does_not_hide_another(graph: Graph) -> None:
    tiles = torch.rand(2, 1, 8, 8)
    tiles[0, 0, 0, 0] = float("nan")
    assert FloatRunner(Watched(graph)).run(tiles)[1]

    class Overflowing:
        def run(self, *inputs: Tensor) -> list[Tensor]:
            return [torch.full_like(inputs[0], float("inf"))]

    assert not FloatRunner(Overflowing()).run(tiles)[1]


NETS = {
    "compact": vocabulary.compact,
    "shuffled": lambda: from_module(
        nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)),
        torch.rand(1, 3, 8, 8),
    ),
    "deconvolved": lambda: from_module(
        nn.Sequential(nn.Conv2d(3, 12, 5, padding=2), nn.PReLU(), nn.ConvTranspose2d(12, 3, 9, 2, 4, 1)),
        torch.rand(1, 3, 8, 8),
    ),
}


@pytest.mark.parametrize("edge", [9, 24, 41])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", [name for name in candidates._BATCHING if name != "triton_fused"])
def test_backends_that_batch_give_each_window_its_own_bits(name: str, net: str, edge: int) -> None:
    backend = registry.get(name)
    if backend.available():
        pytest.skip(backend.available() or "")
    torch.manual_seed(1)
    model = Model("net", "0", graph=NETS[net]())
    x = torch.rand(4, 3, edge, edge + 2)
    for threads in (1, 2):
        options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "threads": threads}
        one, four = (backend.compile(model, [(n, *x.shape[1:])], **options) for n in (1, 4))
        assert torch.equal(four.run(x)[0], torch.cat([one.run(x[i : i + 1])[0] for i in range(4)]))
        pixels = (x.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
        alone, together = (compile_pixels(backend, model, (n, *x.shape[1:]), pixels.dtype, **options) for n in (1, 4))
        assert np.array_equal(
            together.run(pixels)[0], np.concatenate([alone.run(pixels[i : i + 1])[0] for i in range(4)])
        )


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return load_model(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))
    )


def test_only_quick_windows_of_a_large_enough_grid_are_batched(model: Model) -> None:
    def listed(backend: str, edge: int, tile: int) -> tuple[int, ...]:
        return batches(model, backend, "cpu", grid(edge, edge, tile, model.geometry()))

    assert listed("onnxruntime", 200, 30) == (1, 4)
    assert listed("openvino", 200, 30) == listed("torch_eager", 200, 30) == (1,)
    assert listed("onnxruntime", 200, 100) == listed("onnxruntime", 200, 0) == (1,)
    assert listed("onnxruntime", 4000, 500) == (1,)
    assert batches(model, "triton_fused", "cuda:0", grid(4000, 4000, 500, model.geometry())) == (1, 4)


def test_the_memory_of_a_batch_is_counted_and_given_up_where_it_does_not_fit(model: Model) -> None:
    def planned(batch: int, memory: int, workers: int = 1) -> Any:
        serving = Serving("onnxruntime", "cpu", "fp32", (), 1, workers, batch=batch)
        return plan(model, (1, 300, 300), 0, Request(tile=30, memory=memory), serving)[0]

    one, four = planned(1, 1 << 30), planned(4, 1 << 30)
    assert (one.batch, four.batch) == (1, 4)
    assert 3.5 < four.peak_bytes / one.peak_bytes <= 4
    assert "in one call" not in str(one)
    assert "100 windows of 34x34, 4 in one call" in str(four)
    tight = planned(4, one.peak_bytes, workers=2)
    assert (tight.batch, tight.workers, tight.peak_bytes) == (1, 1, one.peak_bytes)
    with pytest.raises(CapacityError, match="Allow at least"):
        planned(4, one.peak_bytes // 2)


def test_batches_are_measured_beside_single_windows(model: Model) -> None:
    if registry.get("onnxruntime").available():
        pytest.skip("needs onnxruntime")
    subject = Subject(1, 180, 200, "uint8")
    found = measure(Task(model, subject, "cpu", ("onnxruntime",), "fp32", 16, 2, 1 << 30, 60.0))
    timed_so = {str(m.candidate): m for m in found if m.reason is None and m.candidate.tile}
    assert "onnxruntime fp32, tile 16 in batches of 4, 2 threads" in timed_so
    assert "onnxruntime fp32, tile 16, 2 threads" in timed_so
    assert {m.candidate.batch for m in timed_so.values()} == {1, 4}


def test_a_chosen_batch_serves_and_is_recorded(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    if registry.get("onnxruntime").available():
        pytest.skip("needs onnxruntime")

    def batched(asked: Task) -> tuple[Measurement, ...]:
        return (Measurement(Candidate("onnxruntime", "fp32", 1, 1, 8, 4), (12, 12), 0.1, 0.001, 0.0, 99.0),)

    monkeypatch.setattr(selection, "measure", batched)
    assert model.module is not None
    load = {"cache_dir": tmp_path, "backend": "onnxruntime"}
    picture = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
    expected = tilefuse.load(model.module, **load, tile=8)(picture)
    assert tilefuse.load(model.module, **load).warm(40, 61).batch == 4
    engine = tilefuse.load(model.module, **load)
    assert (engine.plan(40, 61).batch, engine.plan(40, 61).tile) == (4, 8)
    assert any("tile 8 in batches of 4" in why for why in engine.plan(40, 61).why)
    assert np.array_equal(engine(picture), expected)
    # Alpha goes through in windows of its own, gray through as one channel.
    with_alpha = np.dstack([picture, picture[..., :1]])
    assert np.array_equal(engine(with_alpha), tilefuse.load(model.module, **load, tile=8)(with_alpha))
