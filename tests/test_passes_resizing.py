"""Resizes as convolutions: equal to the interpolation, and equal at every position."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from tests.conftest import Compare
from tilefuse.graph import Graph, Input, Node
from tilefuse.ops import Resize
from tilefuse.ops.resampling import Coordinates, ResizeMode
from tilefuse.passes import lower_resizes


def resize_graph(mode: ResizeMode, scale: Fraction, coordinates: Coordinates = "half_pixel") -> Graph:
    op = Resize(mode, (scale, scale), coordinates=coordinates)
    return Graph((Input("image", (None, 2, None, None)),), (Node(op, ("image",), "out"),), ("out",))


def lowered(graph: Graph) -> Graph:
    return lower_resizes(graph, graph.shapes((1, 2, 30, 30)))


@pytest.mark.parametrize("scale", [Fraction(3), Fraction(5), Fraction(3, 2), Fraction(6, 5)], ids=str)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric"])
@pytest.mark.parametrize("blocks", [1, 2, 17])
def test_equal_to_the_interpolation(
    mode: ResizeMode, scale: Fraction, coordinates: Coordinates, blocks: int, assert_close: Compare
) -> None:
    graph = resize_graph(mode, scale, coordinates)
    x = torch.rand(1, 2, scale.denominator * blocks, scale.denominator * (blocks + 2))
    assert len(lowered(graph).nodes) == 3
    # In double precision the library's positions do not drift.
    expected = graph.evaluate(x.double())[0]
    assert_close(lowered(graph).evaluate(x)[0], expected, max_abs=1e-6, what=f"{mode} x{scale}")


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_far_from_the_origin_nothing_drifts(mode: ResizeMode, assert_close: Compare) -> None:
    """The library's own x3 resize of a long image differs from that of its end; the lowered one does not."""
    graph = resize_graph(mode, Fraction(3))
    x = torch.rand(1, 2, 4, 30_000)
    whole, end = (lowered(graph).evaluate(part)[0] for part in (x, x[..., -40:]))
    assert_close(whole[..., -60:], end[..., -60:], max_abs=1e-6, what="lowered")
    whole, end = (graph.evaluate(part)[0] for part in (x, x[..., -40:]))
    assert (whole[..., -60:] - end[..., -60:]).abs().max() > 1e-5


@pytest.mark.parametrize("scale", [Fraction(2), Fraction(4), Fraction(1, 2), Fraction(1, 3)], ids=str)
def test_exact_factors_stay(scale: Fraction) -> None:
    graph = resize_graph("linear", scale)
    assert lowered(graph).nodes == graph.nodes
