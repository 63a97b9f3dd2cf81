"""The enlarged image added before a pixel shuffle: the same bits, and nothing moved that is no such sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tilefuse.capture import from_module
from tilefuse.graph import Graph
from tilefuse.ops import Binary, PixelShuffle, Resize
from tilefuse.passes import add_before_shuffle

Ending = Callable[[Tensor, Tensor, int], Tensor]


class Network(nn.Module):
    """A convolution and an ending: `ending(image, features, factor)`."""

    def __init__(self, channels: int, factor: int, ending: Ending) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, channels * factor**2, 3, padding=1)
        self.factor, self.ending = factor, ending

    def forward(self, x: Tensor) -> Tensor:
        return self.ending(x, self.conv(x), self.factor)


def captured(channels: int, factor: int, ending: Ending) -> Graph:
    return from_module(Network(channels, factor, ending), torch.rand(1, channels, 6, 7))


def usual(x: Tensor, features: Tensor, factor: int) -> Tensor:
    return F.pixel_shuffle(features, factor) + F.interpolate(x, scale_factor=factor, mode="nearest")


def kinds(graph: Graph) -> list[type]:
    return [type(node.op) for node in graph.nodes]


@given(st.integers(1, 4), st.integers(2, 4), st.booleans(), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_the_same_bits(channels: int, factor: int, swapped: bool, size: tuple[int, int]) -> None:
    def ending(x: Tensor, features: Tensor, r: int) -> Tensor:
        shuffled, enlarged = F.pixel_shuffle(features, r), F.interpolate(x, scale_factor=r, mode="nearest")
        return enlarged + shuffled if swapped else shuffled + enlarged

    graph = captured(channels, factor, ending)
    moved = add_before_shuffle(graph)
    assert Resize not in kinds(moved)
    assert kinds(moved)[-2:] == [Binary, PixelShuffle]
    x = torch.randn(2, channels, *size)
    assert torch.equal(moved.evaluate(x)[0], graph.evaluate(x)[0])


def test_what_follows_stays_behind() -> None:
    graph = captured(3, 2, lambda x, features, r: usual(x, features, r).clamp(0, 1))
    moved = add_before_shuffle(graph)
    x = torch.randn(1, 3, 5, 4)
    assert torch.equal(moved.evaluate(x)[0], graph.evaluate(x)[0])
    assert Resize not in kinds(moved)


@pytest.mark.parametrize(
    "ending",
    [
        lambda x, features, r: F.pixel_shuffle(features, r) - F.interpolate(x, scale_factor=r, mode="nearest"),
        lambda x, features, r: F.pixel_shuffle(features, r) + F.interpolate(x, scale_factor=r, mode="bilinear"),
        # What is enlarged is no image.
        lambda x, features, r: F.pixel_shuffle(features, r) + F.interpolate(features[:, :2], scale_factor=r),
        # One of the two has other readers.
        lambda x, features, r: (y := F.pixel_shuffle(features, r)).tanh() * (y + F.interpolate(x, scale_factor=r)),
        lambda x, features, r: torch.cat((y := F.interpolate(x, scale_factor=r), F.pixel_shuffle(features, r) + y), 1),
    ],
)
def test_other_sums_stay(ending: Ending) -> None:
    graph = captured(2, 2, ending)
    moved = add_before_shuffle(graph)
    x = torch.randn(1, 2, 5, 4)
    assert torch.equal(moved.evaluate(x)[0], graph.evaluate(x)[0])
    assert kinds(moved) == kinds(graph)
