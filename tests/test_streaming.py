"""Rows through the network give what the whole image gives, whatever the stripes and wherever the pass begins."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.networks import drawn_graph
from tilefuse.capture import from_module
from tilefuse.errors import CapacityError
from tilefuse.graph import Graph
from tilefuse.streaming import RowStream, peak_bytes


def streamed(
    graph: Graph, image: Tensor, stripe: int, first: int = 0, chunk: int = 8
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Run rows from `first` on; give the result, and what was read of the image."""
    stream = RowStream(graph, image.shape[2], image.shape[3], first)
    read: list[tuple[int, int]] = []

    def rows(start: int, stop: int) -> Tensor:
        read.append((start, stop))
        return image[:, :, start:stop]

    parts = []
    for start in range(first, stream.rows, stripe):
        parts.append(stream.advance(rows, min(start + stripe, stream.rows), chunk))
    return torch.cat(parts, 2), read


@pytest.mark.parametrize("valid", [False, True], ids=["padded", "unpadded too"])
@pytest.mark.thorough
@given(data=st.data())
@settings(max_examples=25)
def test_rows_equal_the_whole_on_random_networks(valid: bool, data: st.DataObject) -> None:
    network, graph, found = drawn_graph(data, valid=valid)
    height = found.y.padded(data.draw(st.sampled_from([1, 9, 30, 50]), "height"), found.minimum_px)
    width = found.x.padded(data.draw(st.sampled_from([1, 13]), "width"), found.minimum_px)
    image = torch.rand(data.draw(st.sampled_from([1, 2])), network.in_channels, height, width)
    whole = graph.evaluate(image)[0]
    first = data.draw(st.integers(0, whole.shape[2] - 1), "first row")
    stripe = data.draw(st.sampled_from([1, 3, 8, 40]), "stripe")
    chunk = data.draw(st.sampled_from([1, 5, 100]), "chunk")
    rows, read = streamed(graph, image, stripe, first, chunk)
    difference = (rows.double() - whole[:, :, first:]).abs()
    print(f"max {difference.max():.2e} rms {difference.square().mean().sqrt():.2e}")
    assert difference.max() <= 1e-5 * max(1.0, float(whole.abs().max()))
    assert all(stop == start for (_, stop), (start, _) in pairwise(read)), "each row is read once"


def test_a_row_fewer_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The property above can fail: without one of the rows that a convolution reads, stripes differ."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 1, 3, padding=1) for _ in range(3)]
    image = torch.rand(1, 1, 20, 9)
    graph = from_module(nn.Sequential(*layers), torch.rand(1, 1, 16, 16))
    whole = graph.evaluate(image)[0]
    assert (streamed(graph, image, 4)[0] - whole).abs().max() <= 1e-6
    monkeypatch.setattr(
        "tilefuse.geometry.Sliding.reads", lambda self, first, last: (first - self.before + 1, last + self.after)
    )
    with pytest.raises((AssertionError, RuntimeError)):
        assert (streamed(graph, image, 4)[0] - whole).abs().max() <= 1e-5


def test_what_is_held_does_not_grow_with_the_height() -> None:
    module = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6)))
    graph = from_module(module, torch.rand(1, 3, 16, 16))
    low, high = (peak_bytes(graph, height, 8, 4, range(4, height + 1, 4)) for height in (40, 160))
    assert low == high
    # Two rows that each of the six convolutions still reads, and a few stripes of four under way.
    assert 6 * 2 * 3 * 8 * 4 < low <= (6 * 2 + 4 * 4) * 3 * 8 * 4


def test_a_network_that_sees_the_whole_image_is_refused_by_name() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3))
    graph = from_module(module, torch.rand(1, 3, 16, 16))
    with pytest.raises(CapacityError, match=r"instance_norm.*schedule whole"):
        RowStream(graph, 16, 16)
