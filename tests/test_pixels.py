"""Integer windows: conversion inside a library gives what conversion around it gives, and overflow is not hidden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import vocabulary
from tilefuse.backends import pixels as pixels_module
from tilefuse.backends import registry
from tilefuse.backends.base import Precision
from tilefuse.backends.pixels import (
    ConvertedSession,
    PixelBackend,
    PixelSession,
    compile_pixels,
    interleaved,
    is_finite,
    to_pixels,
)
from tilefuse.errors import BackendError
from tilefuse.graph import Graph
from tilefuse.model import Model

CONVERTING = ("openvino", "onnxruntime", "ncnn")
ALL = (*CONVERTING, "torch_eager")


def compiled(
    name: str, graph: Graph, shape: tuple[int, ...], dtype: type, precision: Precision = "fp32"
) -> PixelSession:
    model = Model("tried", "0", graph=graph)
    return compile_pixels(
        registry.get(name), model, shape, np.dtype(dtype), device="cpu", precision=precision, threads=1
    )


def expected(graph: Graph, pixels: np.ndarray) -> np.ndarray:
    full = float(np.iinfo(pixels.dtype).max)
    tile = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2) / full
    values = graph.evaluate(tile)[0].permute(0, 2, 3, 1).numpy().astype(np.float64)
    return np.clip(values * full, 0, full)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pixels_are_the_rounded_reference(name: str, dtype: type) -> None:
    graph = vocabulary.compact()
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (2, 7, 11, 3), dtype)
    result, finite = compiled(name, graph, (2, 3, 7, 11), dtype).run(pixels)
    exact = expected(graph, pixels)
    assert result.dtype == dtype
    assert finite
    error = np.abs(result - exact)
    print(f"{name} {dtype.__name__}: max {error.max():.4f} rms {np.sqrt((error**2).mean()):.4f} levels")
    # Half a level of rounding, and 1e-5 of full scale that the network itself may differ by.
    assert error.max() <= 0.5 + 1e-5 * np.iinfo(dtype).max


@pytest.mark.parametrize("name", CONVERTING)
def test_a_converting_backend_converts_by_itself(name: str) -> None:
    assert isinstance(registry.get(name), PixelBackend)
    session = compiled(name, vocabulary.compact(), (1, 3, 6, 5), np.uint8)
    assert not isinstance(session, ConvertedSession)
    with pytest.raises(BackendError, match=r"pixels of \[1, 6, 5, 3\]; \[1, 5, 6, 3\] were given"):
        session.run(np.zeros((1, 5, 6, 3), np.uint8))


def test_what_a_backend_cannot_convert_is_converted_around_it() -> None:
    class Unable(type(registry.get("torch_eager"))):  # type: ignore[misc]
        def compile_pixels(self, *_: object, **__: object) -> PixelSession:
            raise BackendError("the library has no such conversion")

    assert isinstance(Unable(), PixelBackend)
    graph, pixels = vocabulary.compact(), np.random.default_rng(0).integers(0, 256, (1, 6, 5, 3), np.uint8)
    model, dtype = Model("tried", "0", graph=graph), np.dtype(np.uint8)
    session = compile_pixels(Unable(), model, (1, 3, 6, 5), dtype, device="cpu", precision="fp32", threads=1)
    assert isinstance(session, ConvertedSession)
    assert np.abs(session.run(pixels)[0] - expected(graph, pixels)).max() <= 0.5 + 1e-5 * 255


@pytest.mark.parametrize("name", ALL)
def test_the_caller_owns_the_result(name: str) -> None:
    session = compiled(name, vocabulary.compact(), (1, 3, 6, 5), np.uint8)
    first, _ = session.run(np.full((1, 6, 5, 3), 200, np.uint8))
    kept = first.copy()
    session.run(np.zeros((1, 6, 5, 3), np.uint8))
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_value_is_told(name: str, bad: float) -> None:
    graph = vocabulary.compact()
    # The last weights: a value that a later layer would clip away can't be told from a finite one.
    last = list(graph.weights)[-1]
    broken = {key: value.clone() for key, value in graph.weights.items()}
    broken[last].view(-1)[0] = bad
    _, finite = compiled(name, replace(graph, weights=broken), (1, 3, 6, 5), np.uint8).run(
        np.full((1, 6, 5, 3), 200, np.uint8)
    )
    assert not finite


def test_bf16_in_openvino_stays_near() -> None:
    graph = vocabulary.compact()
    if registry.get("openvino").refusal(Model("tried", "0", graph=graph), "cpu", "bf16") is not None:
        pytest.skip("OpenVINO has no bf16 here")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    whole, _ = compiled("openvino", graph, (1, 3, 16, 16), np.uint8, "bf16").run(pixels)
    assert np.abs(whole - expected(graph, pixels)).max() <= 4


def test_interleaving_and_rounding() -> None:
    values = torch.tensor([[[[0.5 / 255, 1.5 / 255, -1.0, 2.0]], [[0.25, 0.5, 0.75, 1.0]]]])
    assert to_pixels(values, np.dtype(np.uint8)).tolist() == [[[[0, 64], [2, 128], [0, 191], [255, 255]]]]
    planes = np.arange(24, dtype=np.uint16).reshape(2, 3, 2, 2)
    assert np.array_equal(interleaved(planes), planes.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("shape", "passes"),
    [
        ((1, 1, 1024, 1024), 1),
        ((1, 1, 1025, 1024), 2),
        ((1, 3, 700, 1000), 3),
        ((3, 2, 350, 300), 1),
        ((3, 2, 1200, 300), 3),
        # A row that is more than a pass goes alone.
        ((1, 1, 3, 1_100_000), 3),
    ],
)
def test_passes_meet_without_a_gap(shape: tuple[int, ...], passes: int, dtype: type) -> None:
    rows = max(1, pixels_module._PASS_BYTES // (4 * shape[0] * shape[1] * shape[3]))
    assert -(-shape[2] // rows) == passes
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    kept, full = values.clone(), np.iinfo(dtype).max
    whole = np.clip(np.rint(values.numpy() * np.float32(full)), 0, full).astype(dtype)
    found = to_pixels(values, np.dtype(dtype))
    assert found.dtype == dtype
    assert np.array_equal(found, whole.transpose(0, 2, 3, 1))
    assert torch.equal(values, kept), "the caller's values were changed"


def test_finiteness_in_one_pass() -> None:
    values = torch.rand(3, 50)
    assert is_finite(values)
    assert is_finite(torch.empty(0))
    for bad in (float("nan"), float("inf"), float("-inf")):
        values[1, 17] = bad
        assert not is_finite(values)
