"""What a run costs: right, and counted once for a graph and its shapes, since every call of an engine plans."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import tilefuse
from tilefuse.cost import Cost, cost_of
from tilefuse.errors import ModelError
from tilefuse.graph import Graph, Input, Node
from tilefuse.ops import Conv2d, Pad

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
