"""Lowering: what joins its layer, what moves nothing, and an arena whose buffers never overlap."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests import models
from tests.conftest import Compare
from tilefuse.backends.base import Session
from tilefuse.backends.triton.arena import ALIGNMENT_BYTES, Lifetime, lay_out
from tilefuse.backends.triton.epilogues import read_tail
from tilefuse.backends.triton.lowering import lower
from tilefuse.backends.triton.pixels import stores_pixels
from tilefuse.backends.triton.places import Place, dense_strides
from tilefuse.backends.triton_fused import TritonFused
from tilefuse.capture import from_module
from tilefuse.cost import peak_live_bytes
from tilefuse.export.generators.stylenet import TransformerNet
from tilefuse.graph import Graph, Input, Node
from tilefuse.kernels.layer import pack_conv2d
from tilefuse.model import Model
from tilefuse.ops import Activation, Binary, Clamp, Concat, Conv2d, Op, PixelShuffle, Slice

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")


def compiled(graph: Graph, *inputs: Tensor) -> Session:
    model = Model("tried", "0", graph=graph)
    return TritonFused().compile(model, [tuple(x.shape) for x in inputs], device="cpu", precision="fp32", threads=1)


def captured(name: str) -> Graph:
    module, x = models.build(name)
    with torch.no_grad():
        return from_module(module, x)


def test_a_program_is_flat_and_frozen_and_its_peak_is_known_before_it_runs() -> None:
    graph = captured("rrdbnet")
    shape = (1, 3, 64, 64)
    program = lower(graph, [shape], torch.float32)
    kernels = [call.kernel for call in program.calls]
    assert kernels == ["conv2d"] * 32 + ["upsample_conv2d"] * 2 + ["conv2d"] * 2
    with pytest.raises(FrozenInstanceError):
        program.calls[0].kernel = "other"  # type: ignore[misc]
    shapes = graph.shapes(shape)
    assert program.arena_bytes < 0.6 * sum(4 * np.prod(shapes[node.output]) for node in graph.nodes)
    # The enlarged images are never made, and concats are free.
    assert program.arena_bytes <= peak_live_bytes(graph, shapes)
    for call in program.calls:
        for place in (*call.reads, *call.writes):
            last = place.offset + sum((size - 1) * step for size, step in zip(place.shape, place.strides, strict=True))
            assert 0 <= place.offset <= last < program.buffers[place.buffer].elements


def test_norms_enlargements_and_constants_join_their_layer() -> None:
    torch.manual_seed(0)
    style = from_module(TransformerNet().eval(), torch.rand(1, 3, 32, 32))
    kernels = [call.kernel for call in lower(style, [(1, 3, 32, 32)], torch.float16).calls]
    assert kernels.count("upsample_conv2d") == 2
    assert "resize" not in kernels
    assert kernels.count("elementwise") <= kernels.count("norm_statistics")
    span = captured("span")
    kernels = [call.kernel for call in lower(span, [(1, 3, 16, 16)], torch.float16).calls]
    assert kernels.count("elementwise") <= 8
    dcgan = captured("dcgan")
    assert lower(dcgan, [(2, 5)], torch.float16).calls[0].kernel == "linear"


MEMBERS: list[tuple[tuple[Op, tuple[str, ...]], ...]] = [
    ((Activation("tanh"), ()), (Binary("add"), ("one",)), (Binary("div"), ("two",)), (Binary("mul"), ("two",))),
    ((Binary("add"), ("r",)), (Binary("mul"), ("two",)), (Binary("add"), ("s",)), (Activation("relu"), ())),
    ((PixelShuffle(2, "dcr"), ()), (Activation("relu"), ()), (Binary("sub"), ("shuffled",)), (Clamp(0.0, 1.0), ())),
    ((Clamp(0.0, 1.0), ()), (Binary("mul"), ("two",)), (Binary("add"), ("r",))),
    ((Binary("mul"), ("each",)), (Activation("silu"), ())),
    ((Activation("relu"), ()), (Binary("add"), ("r",)), (Activation("relu"), ()), (PixelShuffle(2), ())),
]


@pytest.mark.parametrize(("position", "taken"), list(enumerate([4, 4, 4, 2, 0, 2])))
def test_what_an_epilogue_holds_is_fused_and_the_rest_follows(position: int, taken: int, assert_close: Compare) -> None:
    weights = {
        "one": torch.tensor(1.0),
        "two": torch.tensor(2.0),
        "each": torch.rand(8, 1, 1),
        "w": torch.randn(8, 3, 3, 3) / 5,
        "b": torch.randn(8),
    }
    members = MEMBERS[position]
    assert read_tail(members, weights, 8).taken == taken
    nodes = [Node(Conv2d(padding=(1, 1, 1, 1)), ("x", "w", "b"), "v0")]
    for op, extras in members:
        nodes.append(Node(op, (nodes[-1].output, *extras), f"v{len(nodes)}"))
    inputs = (Input("x", (None, 3, None, None)), Input("r", (None, 8, None, None)), Input("s", (None, 8, None, None)))
    read = {name for node in nodes for name in node.inputs}
    shuffled = Input("shuffled", (None, 2, None, None))
    graph = Graph((*inputs, shuffled), tuple(nodes), (nodes[-1].output,), {k: weights[k] for k in weights if k in read})
    x = [torch.randn(1, 3, 5, 6), torch.randn(1, 8, 5, 6), torch.randn(1, 8, 5, 6), torch.randn(1, 2, 10, 12)]
    assert_close(compiled(graph, *x).run(*x)[0], graph.evaluate(*x)[0], max_abs=1e-5, what=str(members))


def test_slices_and_concats_move_nothing_where_a_view_does() -> None:
    weights = {f"w{i}": torch.randn(4, 4, 1, 1) for i in range(3)}
    nodes = (
        Node(Conv2d(), ("x", "w0"), "a"),
        Node(Conv2d(), ("a", "w1"), "b"),
        Node(Concat(), ("a", "b"), "both"),
        Node(Slice(1, 2, 6), ("both",), "middle"),
        Node(Conv2d(), ("middle", "w2"), "y"),
    )
    graph = Graph((Input("x", (None, 4, None, None)),), nodes, ("y",), weights)
    program = lower(graph, [(1, 4, 5, 6)], torch.float32)
    assert [call.kernel for call in program.calls] == ["conv2d"] * 3
    x = torch.randn(1, 4, 5, 6)
    assert (compiled(graph, x).run(x)[0] - graph.evaluate(x)[0]).abs().max() < 1e-5


lifetimes = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 9), st.integers(0, 9)), max_size=12)


@given(lifetimes)
def test_buffers_alive_together_never_share_bytes(drawn: list[tuple[int, int, int]]) -> None:
    lives = [Lifetime(str(i), size, min(a, b), max(a, b)) for i, (size, a, b) in enumerate(drawn)]
    offsets, total = lay_out(lives)
    assert all(offsets[life.name] % ALIGNMENT_BYTES == 0 for life in lives)
    assert all(offsets[life.name] + life.bytes <= total for life in lives)
    for moment in range(10):
        spans = sorted((offsets[x.name], x.bytes) for x in lives if x.first <= moment <= x.last)
        assert all(start + size <= after for (start, size), (after, _) in pairwise(spans))


def test_the_arena_is_reused() -> None:
    chain = [Lifetime(str(i), 1000, i, i + 1) for i in range(20)]
    assert lay_out(chain)[1] == 2 * 1024


def pixel_graph(*nodes: Node, **weights: Tensor) -> Graph:
    return Graph((Input("x", (None, 3, None, None)),), nodes, (nodes[-1].output,), weights)


def test_pixels_are_read_where_only_layers_of_few_channels_do_and_written_where_words_can_be() -> None:
    w, narrow = torch.randn(12, 3, 3, 3), torch.randn(3, 12, 3, 3)
    same = Conv2d(padding=(1, 1, 1, 1))
    first, last = Node(same, ("x", "w"), "a"), Node(same, ("a", "narrow"), "y")
    two = pixel_graph(first, last, w=w, narrow=narrow)
    shuffled = pixel_graph(first, Node(PixelShuffle(2), ("a",), "y"), w=w)
    twice = pixel_graph(first, last, Node(Binary("add"), ("y", "x"), "z"), w=w, narrow=narrow)
    views = pixel_graph(
        Node(Slice(1, 0, 2), ("x",), "part"), Node(same, ("part", "v"), "a"), last, v=w[:, :2], narrow=narrow
    )
    pooled = pixel_graph(first, last, Node(Activation("relu"), ("x",), "b"), w=w, narrow=narrow)
    sixteen = Input("x", (None, 16, None, None))
    wide = Graph((sixteen,), (Node(same, ("x", "w"), "y"),), ("y",), {"w": torch.randn(12, 16, 3, 3)})
    u8, u16, single = torch.uint8, torch.uint16, torch.float32
    # Twelve channels are whole words, three alone are none.
    cases = [
        (shuffled, u8, (u8, u8)),
        (shuffled, u16, (u16, u16)),
        (two, u8, (u8, single)),
        (two, u16, (u16, single)),
        (twice, u16, (single, single)),
        (views, u16, (u16, single)),
        (wide, u8, (single, u8)),
    ]
    for number, (graph, kind, ends) in enumerate(cases):
        program = lower(graph, [(1, 16 if graph is wide else 3, 6, 6)], single, pixels=kind)
        assert (program.inputs[0].dtype, program.outputs[0].dtype) == ends, number
        assert (program.flag is not None) == (ends[1] == kind)
        for place in (*program.inputs, *program.outputs):
            assert program.buffers[place.buffer].dtype == place.dtype
            assert program.offsets[place.buffer] + program.buffers[place.buffer].bytes <= program.arena_bytes
    both = lower(replace(pooled, outputs=("y", "b")), [(1, 3, 6, 6)], single, pixels=u8)
    assert (both.inputs[0].dtype, both.flag) == (single, None)
    same_value = Graph((Input("x", (None, 3, None, None)),), (), ("x",), {})
    assert lower(same_value, [(1, 3, 6, 6)], single, pixels=u8).inputs[0].dtype == single


def test_the_flag_of_a_pixel_program_is_alive_throughout() -> None:
    graph = captured("compact")
    program = lower(graph, [(1, 3, 9, 8)], torch.float16, pixels=torch.uint8)
    assert program.flag is not None
    assert program.calls[-1].writes[-1] == program.flag
    start = program.offsets[program.flag.buffer]
    others = [name for name in program.buffers if name != program.flag.buffer]
    spans = [(program.offsets[name], program.offsets[name] + program.buffers[name].bytes) for name in others]
    assert all(end <= start or start + 4 <= begin for begin, end in spans)


@pytest.mark.parametrize(
    ("shuffle", "outputs", "width", "kind", "stored"),
    [
        (4, 48, 5, torch.uint8, True), (2, 12, 5, torch.uint8, True), (3, 27, 4, torch.uint8, False),
        (3, 27, 4, torch.uint16, False), (1, 3, 8, torch.uint8, True), (1, 3, 6, torch.uint8, False),
        (1, 64, 5, torch.uint8, True), (1, 3, 8, torch.uint16, True), (1, 3, 6, torch.uint16, False),
    ],
)  # fmt: skip
def test_no_pixels_are_stored_byte_by_byte(
    shuffle: int, outputs: int, width: int, kind: torch.dtype, stored: bool
) -> None:
    layer = pack_conv2d(torch.empty(outputs, 16, 3, 3, device="meta"), padding=(1, 1, 1, 1), shuffle=shuffle)
    shape = (1, *layer.output_size(4, width), layer.outputs)
    place = Place("y", shape, dense_strides(shape), 0, torch.float16)
    assert stores_pixels(layer, place, kind) == stored
    # Among other channels, words would overwrite them.
    beside = place.viewed(shape, dense_strides((*shape[:3], 65)))
    assert not stores_pixels(layer, beside, torch.uint8)
