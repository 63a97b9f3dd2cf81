"""What a run costs: right, and counted once for a graph and its shapes, since every call of an engine plans."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import tilefuse
from tilefuse import cost
from tilefuse.cost import Cost, cost_of
from tilefuse.errors import ModelError
from tilefuse.graph import Graph, Input, Node
from tilefuse.ops import Activation, Conv2d, ConvTranspose2d, Fused, Linear, Pad, Reshape

IMAGE = Input("image", (None, 2, None, None))


def one_convolution(padding: int = 1) -> Graph:
    node = Node(Conv2d(padding=(padding,) * 4), ("image", "w"), "out")
    return Graph((IMAGE,), (node,), ("out",), {"w": torch.ones(4, 2, 3, 3)})


def test_counts_are_of_the_graph_and_the_shape() -> None:
    graph = one_convolution()
    values, products = 5 * 7, 4 * 2 * 9
    assert cost_of(graph, ((1, 2, 5, 7),)) == Cost(2 * products * values, 4 * (2 + 4) * values, 4 * products)
    assert cost_of(graph, ((3, 2, 5, 7),)).flops == 3 * 2 * products * values
    assert cost_of(one_convolution(padding=0), ((1, 2, 5, 7),)).flops == 2 * products * 3 * 5


def test_other_layers_are_counted_too() -> None:
    node = Node(ConvTranspose2d((2, 2)), ("image", "w"), "out")
    doubled = Graph((IMAGE,), (node,), ("out",), {"w": torch.ones(2, 3, 2, 2)})
    assert cost_of(doubled, ((1, 2, 5, 7),)).flops == 2 * (2 * 5 * 7) * (3 * 2 * 2)
    matrix = Graph((Input("x", (None, 8)),), (Node(Linear(), ("x", "w"), "out"),), ("out",), {"w": torch.ones(3, 8)})
    assert cost_of(matrix, ((5, 8),)).flops == 2 * 5 * 3 * 8
    flat = Graph((Input("x", (None, 8)),), (Node(Reshape((0, 2, 4)), ("x",), "out"),), ("out",), {})
    assert cost_of(flat, ((5, 8),)).flops == 0
    # A fused node is its first op, and one operation an element for each further one.
    fused = Node(
        Fused((Conv2d(padding=(1,) * 4), Activation("relu"), Activation("tanh")), (2, 0, 0)), ("image", "w"), "out"
    )
    together = Graph((IMAGE,), (fused,), ("out",), {"w": torch.ones(4, 2, 3, 3)})
    assert cost_of(together, ((1, 2, 5, 7),)).flops == (2 * 2 * 9 + 2) * 4 * 5 * 7


def test_values_are_freed_after_their_last_reader_unless_they_are_results() -> None:
    nodes = [Node(Activation("relu"), (before,), after) for before, after in ("ab", "bc", "cd")]
    first = Node(Conv2d(padding=(1,) * 4), ("image", "w"), "a")
    pixel = 4 * 5 * 7
    for outputs, values in ((("d",), 4 + 4), (("a", "d"), 4 + 4 + 4), (("a", "b", "d"), 4 + 4 + 4 + 4)):
        graph = Graph((IMAGE,), (first, *nodes), outputs, {"w": torch.ones(4, 2, 3, 3)})
        assert cost_of(graph, ((1, 2, 5, 7),)).live_bytes == values * pixel


def test_what_is_kept_of_a_graph_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_REMEMBERED", 3)
    graph = one_convolution()
    for edge in range(5, 15):
        cost_of(graph, ((1, 2, edge, edge),))
        assert 1 <= len(cost._COSTS[graph]) <= 3


def test_a_shape_an_op_cannot_take_stays_an_error() -> None:
    graph = Graph((IMAGE,), (Node(Pad((4, 4, 4, 4), "reflect"), ("image",), "out"),), ("out",))
    for _ in range(2):
        with pytest.raises(ModelError, match=r"pad \(out\)"):
            cost_of(graph, ((1, 2, 3, 3),))


def test_nothing_keeps_a_graph_alive() -> None:
    graph = one_convolution()
    cost_of(graph, ((1, 2, 5, 7),))
    gone = weakref.ref(graph)
    del graph
    gc.collect()
    assert gone() is None


def test_planning_again_traces_no_op(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    engine = tilefuse.load(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.PixelShuffle(2)), backend="torch_eager")
    first = engine.plan(300, 400)

    def traced(op: Conv2d, *inputs: Tensor) -> Tensor:
        raise AssertionError("an op was traced")

    monkeypatch.setattr(Conv2d, "apply", traced)
    monkeypatch.setattr(Graph, "shapes", traced)
    assert engine.plan(300, 400).windows == first.windows
