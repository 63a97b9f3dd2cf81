"""Tiled equals untiled: each output pixel once, from a window that knows it in full."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.networks import Network, drawn_graph
from tilefuse.capture import from_module
from tilefuse.execute import execute
from tilefuse.footprint import Axis, Footprint, footprint
from tilefuse.graph import Graph
from tilefuse.memory import ArrayReader, ArrayWriter
from tilefuse.runners import FloatRunner
from tilefuse.tiling import grid, split_axis

pytestmark = pytest.mark.thorough


class GraphSession:
    """Runs a graph in plain torch, whatever the shape, and remembers the shapes it was asked for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.shapes: set[tuple[int, ...]] = set()

    def run(self, *inputs: Tensor) -> list[Tensor]:
        self.shapes.add(tuple(inputs[0].shape))
        return self.graph.evaluate(*inputs)


def run(graph: Graph, found: Footprint, image: np.ndarray, tile: int, halo_px: int | None = None) -> np.ndarray:
    """Run an image [N, H, W, C] in tiles."""
    cut = grid(image.shape[1], image.shape[2], tile, found, halo_px)
    session = GraphSession(graph)
    channels = graph.shapes((1, image.shape[3], *cut.window))[graph.outputs[0]][1]
    result = np.full((image.shape[0], *cut.output, channels), np.nan, np.float32)
    execute(cut, FloatRunner(session), ArrayReader(image, image.shape[3]), ArrayWriter(result))
    assert len(session.shapes) == 1, "one window shape an image"
    return result


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    scale = Fraction(draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 3, 4])))
    alignment = scale.denominator * draw(st.integers(1, 3))
    return Axis(scale, 0, draw(st.integers(0, 40)), draw(st.integers(0, 40)), alignment)


@given(axis=axes(), size=st.integers(1, 400), tile=st.integers(0, 120), minimum=st.integers(1, 40))
@settings(max_examples=500)
def test_every_output_is_written_once_by_a_window_that_knows_it(axis: Axis, size: int, tile: int, minimum: int) -> None:
    spans = split_axis(size, tile, axis, minimum)
    padded = axis.padded(size, minimum)
    covered = [position for span in spans for position in range(span.core_start, span.core_stop)]
    assert covered == list(range(axis.output_size(size)))
    assert len({span.stop - span.start for span in spans}) == 1
    for span in spans:
        assert span.start >= 0
        assert span.stop <= padded
        assert span.start % axis.alignment == span.stop % axis.alignment == 0
        assert span.crop == span.core_start - span.start * axis.scale >= 0
        first, last = (int(p / axis.scale) // axis.alignment for p in (span.core_start, span.core_stop - 1))
        assert span.start == 0 or first * axis.alignment - axis.before >= span.start
        assert span.stop == padded or (last + 1) * axis.alignment + axis.after <= span.stop
        assert len(spans) == 1 or span.core_stop - span.core_start <= axis.scale * (span.stop - span.start)


@pytest.mark.parametrize("valid", [False, True], ids=["padded", "unpadded too"])
@given(data=st.data())
@settings(max_examples=70)
def test_tiled_equals_untiled_on_random_networks(valid: bool, data: st.DataObject) -> None:
    network, graph, found = drawn_graph(data, valid=valid)
    # A network without padding of its own leaves nothing of an image smaller than its reach.
    heights = [size for size in (1, 2, 3, 17, 40, 63) if found.y.output_size(size) > 0]
    widths = [size for size in (1, 5, 16, 33, 50) if found.x.output_size(size) > 0]
    # Two images a network, whose capture takes most of the time.
    for _ in range(2):
        height, width = data.draw(st.sampled_from(heights), "height"), data.draw(st.sampled_from(widths), "width")
        check_tiles(network, graph, found, (height, width), data.draw(st.sampled_from([1, 4, 7, 16, 32]), "tile"))


def check_tiles(network: Network, graph: Graph, found: Footprint, size: tuple[int, int], tile: int) -> None:
    image = np.random.default_rng(0).random((1, *size, network.in_channels), np.float32)
    whole, tiled = run(graph, found, image, 0), run(graph, found, image, tile)
    # Aligned images reach the network as they are: then untiled is the module itself.
    if min(size) >= found.minimum_px and size[0] % found.y.alignment == 0 == size[1] % found.x.alignment:
        with torch.no_grad():
            direct = network.module(torch.from_numpy(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
        assert whole.shape == direct.shape
        assert np.abs(whole - direct).max() <= 1e-5 * max(1.0, np.abs(direct).max())
    full_scale = max(1.0, float(np.abs(whole).max()))
    difference = np.abs(tiled.astype(np.float64) - whole)
    print(f"max {difference.max():.2e} rms {np.sqrt(np.square(difference).mean()):.2e} of {full_scale:.2e}")
    assert difference.max() <= 1e-5 * full_scale


def test_a_halo_one_pixel_short_shows() -> None:
    """The property above can fail: with less than the exact halo, tiles differ."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 1, 3, padding=1) for _ in range(4)]
    graph = from_module(torch.nn.Sequential(*layers), torch.rand(1, 1, 16, 16))
    found = footprint(graph)
    image = np.random.default_rng(0).random((1, 40, 40, 1), np.float32)
    whole = run(graph, found, image, 0)
    assert np.abs(run(graph, found, image, 8, found.halo) - whole).max() <= 1e-6
    assert np.abs(run(graph, found, image, 8, found.halo - 1) - whole).max() > 1e-5


def test_a_gigapixel_grid_costs_nothing() -> None:
    axis = Axis(Fraction(4), 0, 4, 4, 1)
    cut = grid(100_000, 100_000, 256, Footprint(axis, axis, (), 1))
    assert len(cut) == 391 * 391
    assert cut[len(cut) - 1].y.core_stop == 400_000


@pytest.mark.parametrize("index", [-1, 4])
def test_no_window_past_the_grid(index: int) -> None:
    axis = Axis(Fraction(1), 0, 0, 0, 1)
    with pytest.raises(IndexError):
        grid(20, 20, 10, Footprint(axis, axis, (), 1))[index]
