"""Convolutions of few outputs as wider ones with a pixel shuffle: the same function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.conftest import Compare
from tilefuse.backends import registry
from tilefuse.graph import Graph, Input, Node
from tilefuse.model import Model
from tilefuse.ops import Conv2d, ConvTranspose2d, PixelShuffle
from tilefuse.passes import widen_narrow_layers

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
KERNELS = st.tuples(st.integers(1, 9), st.integers(1, 9))
SIDES: Any = st.tuples(*[st.integers(0, 4)] * 4)


def one_layer(op: Conv2d | ConvTranspose2d, kernel: tuple[int, int], outputs: int = 2, bias: bool = True) -> Graph:
    torch.manual_seed(0)
    shape = (3, outputs // op.groups) if isinstance(op, ConvTranspose2d) else (outputs, 3 // op.groups)
    weights = {"w": torch.randn(*shape, *kernel)} | ({"b": torch.randn(outputs)} if bias else {})
    node = Node(op, ("image", *weights), "out")
    return Graph((Input("image", (None, 3, None, None)),), (node,), ("out",), weights)


def widened(graph: Graph, size: tuple[int, int]) -> Graph:
    return widen_narrow_layers(graph, graph.shapes((1, 3, *size)))


def factor(graph: Graph) -> int:
    """Output pixels along an edge that one position of the new layer gives; 1 when it stayed."""
    if len(graph.nodes) == 1:
        return 1
    convolution, shuffle = (node.op for node in graph.nodes)
    assert isinstance(convolution, Conv2d)
    assert isinstance(shuffle, PixelShuffle)
    return shuffle.factor


def check_equal(graph: Graph, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    expected, found = graph.evaluate(x)[0], widened(graph, size).evaluate(x)[0]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 2e-5


@given(st.sampled_from([1, 2, 3, 4]), KERNELS, SIDES, SIZES, st.booleans())
@settings(max_examples=200)
def test_equal_to_the_convolution(
    outputs: int, kernel: tuple[int, int], padding: tuple[int, int, int, int], size: tuple[int, int], bias: bool
) -> None:
    top, left, bottom, right = padding
    assume(size[0] + top + bottom >= kernel[0] and size[1] + left + right >= kernel[1])
    check_equal(one_layer(Conv2d(padding=padding), kernel, outputs, bias), size)


@given(st.sampled_from([1, 3]), st.integers(2, 4), KERNELS, SIDES, st.tuples(*[st.integers(0, 3)] * 2), SIZES)
@settings(max_examples=300)
def test_equal_to_the_transposed_convolution(
    outputs: int,
    stride: int,
    kernel: tuple[int, int],
    padding: tuple[int, int, int, int],
    extra: tuple[int, int],
    size: tuple[int, int],
) -> None:
    top, left, bottom, right = padding
    for before, after, k, e, length in zip((top, left), (bottom, right), kernel, extra, size, strict=True):
        full = (length - 1) * stride + k
        # torch crops nothing whole.
        assume(full > before and full + e > before + after)
    check_equal(one_layer(ConvTranspose2d((stride, stride), padding, extra), kernel, outputs), size)


@pytest.mark.parametrize(
    ("op", "kernel", "outputs", "size", "expected"),
    [
        (ConvTranspose2d((2, 2), (4,) * 4, (1, 1)), 9, 1, (6, 8), 4),
        (ConvTranspose2d((2, 2), (4,) * 4, (1, 1)), 9, 1, (6, 7), 2),
        (ConvTranspose2d((2, 2), (1,) * 4), 4, 3, (4, 4), 2),
        (ConvTranspose2d((4, 4), (2,) * 4), 8, 3, (4, 4), 4),
        (Conv2d(padding=(4,) * 4), 9, 3, (6, 8), 2),
        (Conv2d(padding=(1,) * 4), 3, 1, (8, 12), 4),
        (Conv2d(padding=(1,) * 4), 3, 1, (6, 8), 2),
        (Conv2d(), 9, 3, (14, 14), 2),
    ],
    ids=["fsrcnn", "fsrcnn, odd", "dcgan", "x4", "srgan", "gray", "gray, two by two", "no padding"],
)
def test_the_usual_ones_are_replaced(
    op: Conv2d | ConvTranspose2d, kernel: int, outputs: int, size: tuple[int, int], expected: int
) -> None:
    graph = one_layer(op, (kernel, kernel), outputs)
    assert factor(widened(graph, size)) == expected
    check_equal(graph, size)


@pytest.mark.parametrize(
    ("op", "outputs"),
    [
        (ConvTranspose2d((2, 2)), 5),
        (ConvTranspose2d((1, 1)), 2),
        (ConvTranspose2d((2, 1)), 2),
        (ConvTranspose2d((2, 2), dilation=(2, 2)), 2),
        (ConvTranspose2d((2, 2), groups=3), 3),
        (ConvTranspose2d((2, 2), padding=(1, 1, 0, 1)), 2),
        (Conv2d(padding=(2, 1, 2, 1)), 5),
        (Conv2d((2, 2)), 2),
        (Conv2d(dilation=(2, 2)), 2),
        (Conv2d(groups=3), 3),
        (Conv2d(padding=(1,) * 4), 2),
        (Conv2d(padding=(2, 2, 1, 1), padding_mode="reflect"), 2),
    ],
    ids=[
        *("transposed, wide", "transposed, stride 1", "transposed, uneven", "transposed, dilated"),
        *("transposed, grouped", "no whole blocks", "wide", "strided", "dilated", "grouped", "odd result", "reflected"),
    ],
)
def test_others_stay(op: Conv2d | ConvTranspose2d, outputs: int) -> None:
    graph = one_layer(op, (4, 4), outputs)
    assert widened(graph, (8, 8)).nodes == graph.nodes


def test_a_pixel_alone_stays() -> None:
    graph = one_layer(Conv2d(), (1, 1))
    assert widened(graph, (8, 8)).nodes == graph.nodes


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "inductor"])
@pytest.mark.parametrize("op", [ConvTranspose2d((2, 2), (4,) * 4, (1, 1)), Conv2d(padding=(4,) * 4)], ids=str)
def test_backends_compute_the_same(backend: str, op: Conv2d | ConvTranspose2d, assert_close: Compare) -> None:
    if registry.get(backend).available() is not None:
        pytest.skip(f"{backend} is not available")
    graph, x = one_layer(op, (9, 9)), torch.rand(1, 3, 10, 8)
    session = registry.get(backend).compile(
        Model("one", "", graph), [tuple(x.shape)], device="cpu", precision="fp32", threads=1
    )
    assert_close(session.run(x)[0], graph.evaluate(x)[0], max_abs=2e-5, what=backend)
