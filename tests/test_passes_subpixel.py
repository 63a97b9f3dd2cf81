"""Narrow transposed convolutions as convolutions with a pixel shuffle: the same function."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.conftest import Compare
from tilefuse.backends import registry
from tilefuse.graph import Graph, Input, Node
from tilefuse.model import Model
from tilefuse.ops import Conv2d, ConvTranspose2d, PixelShuffle
from tilefuse.passes import narrow_transposed_convolutions


def one_layer(op: ConvTranspose2d, kernel: tuple[int, int], outputs: int = 2, bias: bool = True) -> Graph:
    torch.manual_seed(0)
    weights = {"w": torch.randn(3, outputs // op.groups or 1, *kernel)} | ({"b": torch.randn(outputs)} if bias else {})
    node = Node(op, ("image", *weights), "out")
    return Graph((Input("image", (None, 3, None, None)),), (node,), ("out",), weights)


def is_replaced(graph: Graph) -> bool:
    return [type(node.op) for node in graph.nodes] == [Conv2d, PixelShuffle]


@given(
    stride=st.integers(2, 4),
    kernel=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padding=st.tuples(*[st.integers(0, 4)] * 4),
    extra=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    bias=st.booleans(),
)
@settings(max_examples=300)
def test_equal_to_the_transposed_convolution(
    stride: int,
    kernel: tuple[int, int],
    padding: tuple[int, int, int, int],
    extra: tuple[int, int],
    size: tuple[int, int],
    bias: bool,
) -> None:
    graph = one_layer(ConvTranspose2d((stride, stride), padding, extra), kernel, bias=bias)
    top, left, bottom, right = padding
    for before, after, k, e, length in zip((top, left), (bottom, right), kernel, extra, size, strict=True):
        full = (length - 1) * stride + k
        # torch crops nothing whole.
        assume(full > before and full + e > before + after)
    x = torch.randn(2, 3, *size)
    expected, found = graph.evaluate(x)[0], narrow_transposed_convolutions(graph).evaluate(x)[0]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("stride", "kernel", "padding", "extra"),
    [(2, 9, 4, 1), (2, 4, 1, 0), (2, 3, 1, 1), (2, 2, 0, 0), (4, 8, 2, 0), (3, 9, 4, 2)],
    ids=["fsrcnn-x2", "dcgan", "3x3", "2x2", "x4", "fsrcnn-x3"],
)
def test_the_usual_ones_are_replaced(stride: int, kernel: int, padding: int, extra: int) -> None:
    graph = one_layer(ConvTranspose2d((stride, stride), (padding,) * 4, (extra, extra)), (kernel, kernel))
    assert is_replaced(narrow_transposed_convolutions(graph))


@pytest.mark.parametrize(
    ("op", "outputs"),
    [
        (ConvTranspose2d((2, 2)), 5),
        (ConvTranspose2d((1, 1)), 2),
        (ConvTranspose2d((2, 1)), 2),
        (ConvTranspose2d((2, 2), dilation=(2, 2)), 2),
        (ConvTranspose2d((2, 2), groups=3), 3),
        (ConvTranspose2d((2, 2), padding=(1, 1, 0, 1)), 2),
    ],
    ids=["wide", "no stride", "uneven stride", "dilated", "grouped", "no whole blocks"],
)
def test_others_stay(op: ConvTranspose2d, outputs: int) -> None:
    graph = one_layer(op, (4, 4), outputs)
    assert narrow_transposed_convolutions(graph).nodes == graph.nodes


@pytest.mark.parametrize("backend", ["openvino", "inductor"])
def test_backends_on_onednn_are_given_the_convolution(backend: str, assert_close: Compare) -> None:
    if registry.get(backend).available() is not None:
        pytest.skip(f"{backend} is not available")
    graph, x = one_layer(ConvTranspose2d((2, 2), (1,) * 4), (4, 4)), torch.rand(1, 3, 9, 7)
    session = registry.get(backend).compile(
        Model("one", "", graph), [tuple(x.shape)], device="cpu", precision="fp32", threads=1
    )
    assert_close(session.run(x)[0], graph.evaluate(x)[0], max_abs=1e-5, what=backend)
