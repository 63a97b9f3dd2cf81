"""The graph: validation, evaluation, shapes, printing, identity."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import Compare
from tilefuse.cost import flops, peak_live_bytes
from tilefuse.errors import ModelError
from tilefuse.graph import Graph, Input, Node
from tilefuse.ops import Activation, Binary, Conv2d, Fused, Pad, PixelShuffle

IMAGE = Input("image", (None, 3, None, None))


def small_graph() -> Graph:
    torch.manual_seed(0)
    weights = {"w": torch.randn(12, 3, 3, 3), "b": torch.randn(12), "half": torch.tensor(0.5)}
    nodes = (
        Node(Conv2d(padding=(1, 1, 1, 1)), ("image", "w", "b"), "a"),
        Node(Activation("relu"), ("a",), "r"),
        Node(Binary("mul"), ("r", "half"), "m"),
        Node(Binary("add"), ("m", "a"), "s"),
        Node(PixelShuffle(2), ("s",), "out"),
    )
    return Graph((IMAGE,), nodes, ("out",), weights)


def test_evaluate_is_the_ops_in_order(assert_close: Compare) -> None:
    graph, x = small_graph(), torch.rand(2, 3, 5, 7)
    a = F.conv2d(x, graph.weights["w"], graph.weights["b"], padding=1)
    assert_close(graph.evaluate(x)[0], F.pixel_shuffle(F.relu(a) * 0.5 + a, 2), max_abs=0.0)


def test_fused_equals_its_members(assert_close: Compare) -> None:
    graph, x = small_graph(), torch.rand(1, 3, 4, 4)
    fused = Fused((Conv2d(padding=(1, 1, 1, 1)), Activation("relu"), Binary("mul"), PixelShuffle(2)), (3, 0, 1, 0))
    w, b, half = graph.weights["w"], graph.weights["b"], graph.weights["half"]
    expected = F.pixel_shuffle(F.relu(F.conv2d(x, w, b, padding=1)) * 0.5, 2)
    assert_close(fused.apply(x, w, b, half), expected, max_abs=0.0)


def test_shapes_agree_with_evaluation() -> None:
    graph = small_graph()
    shapes = graph.shapes((2, 3, 5, 7))
    assert shapes["out"] == tuple(graph.evaluate(torch.rand(2, 3, 5, 7))[0].shape) == (2, 3, 10, 14)
    assert flops(graph, shapes) == 2 * 2 * 12 * 5 * 7 * 27 + 4 * (2 * 12 * 5 * 7)
    # a, r and m are alive while m is made; then a, m and s.
    assert peak_live_bytes(graph, shapes) == 4 * 3 * (2 * 12 * 5 * 7)


def test_a_size_an_op_cannot_take_is_named() -> None:
    graph = Graph((IMAGE,), (Node(Pad((4, 4, 4, 4), "reflect"), ("image",), "out"),), ("out",))
    with pytest.raises(ModelError, match=r"pad \(out\) can't take an input of 1x3x3x3"):
        graph.shapes((1, 3, 3, 3))


@pytest.mark.parametrize(
    ("nodes", "outputs", "message"),
    [
        ((Node(Activation("relu"), ("missing",), "a"),), ("a",), "reads 'missing'"),
        ((Node(Activation("relu"), ("image",), "image"),), ("image",), "defined twice"),
        ((Node(Activation("relu"), ("image",), "a"),), ("b",), "output 'b'"),
    ],
)
def test_an_inconsistent_graph_is_refused(nodes: tuple[Node, ...], outputs: tuple[str, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Graph((IMAGE,), nodes, outputs)


@pytest.mark.parametrize("shape", [(1, 4, 5, 5), (3, 5, 5), (1, 3, 5, 5, 5)])
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"must be \?x3x\?x\?"):
        small_graph().evaluate(torch.zeros(shape))


def test_fingerprint_tells_weights_and_structure_apart() -> None:
    graph = small_graph()
    other_weight = Graph(graph.inputs, graph.nodes, graph.outputs, {**graph.weights, "half": torch.tensor(0.25)})
    other_op = Graph(
        graph.inputs, (*graph.nodes[:-1], Node(PixelShuffle(2, "dcr"), ("s",), "out")), ("out",), graph.weights
    )
    prints = {graph.fingerprint(), other_weight.fingerprint(), other_op.fingerprint()}
    assert len(prints) == 3
    assert small_graph().fingerprint() == graph.fingerprint()


def test_printing_shows_every_node_and_scalar() -> None:
    text = str(small_graph())
    assert text.splitlines()[0] == "image: input [?, 3, ?, ?]"
    assert "(r, 0.5)" in text
    assert text.splitlines()[-1] == "return out"
