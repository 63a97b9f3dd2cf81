"""Every pass as an equality of outputs, and what each one promises of the graph it gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import Compare
from tests.models import MODELS, build, dense
from tests.networks import Network, random_network
from tilefuse.capture import from_module
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.graph import Graph, Input, Node
from tilefuse.ops import (
    Activation,
    BatchNorm,
    Binary,
    Concat,
    Conv2d,
    Fused,
    Linear,
    Mean,
    PixelShuffle,
    Slice,
    Unary,
)
from tilefuse.passes import (
    Placement,
    concat_placements,
    fold_affine,
    fold_batch_norm,
    fold_constants,
    fuse_epilogues,
    merge_pads,
    prune,
    unfuse,
)

PASSES: dict[str, Callable[[Graph], Graph]] = {
    "prune": prune,
    "fold_constants": fold_constants,
    "fold_batch_norm": fold_batch_norm,
    "fold_affine": fold_affine,
    "merge_pads": merge_pads,
    "fuse_epilogues": fuse_epilogues,
    "unfuse": lambda graph: unfuse(fuse_epilogues(graph)),
    "all": lambda graph: fuse_epilogues(fold_affine(fold_batch_norm(merge_pads(fold_constants(graph))))),
}


def check_equal(graph: Graph, changed: Graph, *inputs: Tensor, tolerance: float = 2e-5) -> None:
    for before, after in zip(graph.evaluate(*inputs), changed.evaluate(*inputs), strict=True):
        assert before.shape == after.shape
        error = (before - after) / before.abs().max().clamp(min=1)
        largest, rms = error.abs().max().item(), error.square().mean().sqrt().item()
        assert largest <= tolerance, f"max {largest:.2e} rms {rms:.2e}"


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(random_network(global_ops=True), st.integers(0, 3), st.integers(0, 3))
def test_every_pass_keeps_the_output_of_random_networks(network: Network, rows: int, columns: int) -> None:
    graph = from_module(network.module, torch.rand(1, network.in_channels, network.size(3), network.size(4)))
    x = torch.rand(2, network.in_channels, network.size(rows), network.size(columns))
    for change in PASSES.values():
        check_equal(graph, change(graph), x)
    check_placements(graph, x)


@pytest.mark.parametrize("name", MODELS)
def test_every_pass_keeps_the_output_of_generators(name: str) -> None:
    module, example = build(name)
    graph = from_module(module, example)
    for change in PASSES.values():
        changed = change(graph)
        check_equal(graph, changed, example)
        assert changed.outputs == graph.outputs
    check_placements(fuse_epilogues(graph), example)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 6, 3, groups=2, bias=False, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2),
        nn.ConvTranspose2d(4, 6, 2, 2, bias=False),
    ],
    ids=str,
)
def test_batch_norm_disappears_into_the_layer_before(layer: nn.Module, assert_close: Compare) -> None:
    module = nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6))
    with torch.no_grad():
        for norm in (module[1], module[3]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.1, 2)
            norm.weight.normal_()
            norm.bias.normal_()
    module.eval()
    graph = from_module(module, torch.rand(1, 4, 8, 8))
    folded = fold_batch_norm(graph)
    assert [node.op.name for node in folded.nodes[-4:]] == [
        "conv2d" if isinstance(layer, nn.Conv2d) else "conv_transpose2d",
        "activation",
        "binary",
        "binary",
    ]
    x = torch.randn(2, 4, 7, 5)
    assert_close(folded.evaluate(x)[0], graph.evaluate(x)[0], what=str(layer))


def test_batch_norm_disappears_into_a_linear_layer(assert_close: Compare) -> None:
    norm = nn.BatchNorm1d(7)
    torch.nn.init.normal_(norm.weight)
    norm.running_mean.normal_()
    graph = from_module(nn.Sequential(nn.Linear(5, 7), norm).eval(), torch.rand(2, 5))
    folded = fold_batch_norm(graph)
    assert [type(node.op) for node in folded.nodes] == [Linear]
    x = torch.randn(3, 5)
    assert_close(folded.evaluate(x)[0], graph.evaluate(x)[0])


def test_batch_norm_stays_apart_from_a_layer_others_read() -> None:
    module, example = build("shared")
    graph = from_module(module, example)
    folded = fold_batch_norm(graph)
    assert not any(isinstance(node.op, BatchNorm) for node in folded.nodes)
    # Three convolutions read one weight: two take up the norm behind them, each with a weight of its own.
    assert len({node.inputs[1] for node in graph.nodes if isinstance(node.op, Conv2d)}) == 2
    assert len({node.inputs[1] for node in folded.nodes}) == 4
    assert torch.equal(folded.weights[folded.nodes[-1].inputs[1]], module.body.weight)


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("constant_first", [False, True])
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (1, 3, 1, 1), (3, 1, 2), (2, 3, 1, 1)])
def test_arithmetic_with_constants_is_folded_or_left(
    kind: str, constant_first: bool, shape: tuple[int, ...], assert_close: Compare
) -> None:
    torch.manual_seed(0)
    weights = {"w": torch.randn(3, 2, 1, 1), "c": torch.rand(shape) + 0.5}
    operands = ("c", "y") if constant_first else ("y", "c")
    nodes = (Node(Conv2d(), ("x", "w"), "y"), Node(Binary(kind), operands, "z"))  # type: ignore[arg-type]
    graph = Graph((Input("x", (None, 2, None, None)),), nodes, ("z",), weights)
    folded = fold_affine(graph)
    possible = shape in ((), (3, 1, 1), (1, 3, 1, 1)) and not (kind == "div" and constant_first)
    assert len(folded.nodes) == (1 if possible else 2)
    x = torch.rand(2, 2, 3, 2)
    assert_close(folded.evaluate(x)[0], graph.evaluate(x)[0])


def test_an_output_is_not_folded_into() -> None:
    weights = {"w": torch.randn(3, 2, 1, 1), "c": torch.tensor(2.0)}
    nodes = (Node(Conv2d(), ("x", "w"), "y"), Node(Binary("mul"), ("y", "c"), "z"))
    graph = Graph((Input("x", (None, 2, None, None)),), nodes, ("z", "y"), weights)
    assert fold_affine(graph).nodes == nodes
    assert fuse_epilogues(graph).nodes == nodes


def test_constants_are_computed_once_and_dead_nodes_go() -> None:
    weights = {"a": torch.tensor(2.0), "unused": torch.zeros(3)}
    nodes = (
        Node(Unary("square"), ("a",), "b"),
        Node(Binary("mul"), ("x", "b"), "y"),
        Node(Unary("abs"), ("x",), "dead"),
    )
    graph = fold_constants(Graph((Input("x", (None, 1, None, None)),), nodes, ("y",), weights))
    assert graph.nodes == nodes[1:2]
    assert dict(graph.weights) == {"b": torch.tensor(4.0)}


@pytest.mark.parametrize(
    ("module", "merged"),
    [
        (nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(2, 2, 3, padding=1)), True),
        (nn.Sequential(nn.ReflectionPad2d((1, 2, 0, 3)), nn.Conv2d(2, 2, 3)), True),
        (nn.Sequential(nn.ReplicationPad2d(1), nn.Conv2d(2, 2, 3, padding=1)), False),
        (nn.Sequential(nn.ConstantPad2d(1, 0.5), nn.Conv2d(2, 2, 3)), False),
        (nn.Sequential(nn.ZeroPad2d((-1, 1, 1, 1)), nn.Conv2d(2, 2, 3)), False),
    ],
    ids=str,
)
def test_a_pad_becomes_part_of_the_convolution_where_it_can(
    module: nn.Module, merged: bool, assert_close: Compare
) -> None:
    graph = from_module(module, torch.rand(1, 2, 8, 8))
    changed = merge_pads(graph)
    assert [node.op.name for node in changed.nodes] == (["conv2d"] if merged else ["pad", "conv2d"])
    x = torch.rand(2, 2, 7, 5)
    assert_close(changed.evaluate(x)[0], module(x))


def fused_members(graph: Graph) -> list[list[str]]:
    return [[op.name for op in node.op.members] for node in graph.nodes if isinstance(node.op, Fused)]


def test_rrdb_becomes_one_node_a_convolution() -> None:
    graph = fuse_epilogues(
        fold_affine(from_module(RRDBNet(num_feat=8, num_block=1, num_grow_ch=4), torch.rand(1, 3, 8, 8)))
    )
    assert {type(node.op).__name__ for node in graph.nodes} == {"Fused", "Conv2d", "Concat", "Resize"}
    members = fused_members(graph)
    assert members.count(["conv2d", "activation"]) == 12 + 3
    assert members.count(["conv2d", "binary"]) == 3
    # The third block's scaled residual is scaled again and added to the input of all three.
    assert members.count(["conv2d", "binary", "binary", "binary"]) == 1


def test_compact_ends_in_one_node_with_shuffle_and_residual() -> None:
    module, example = build("compact")
    graph = fuse_epilogues(from_module(module, example))
    assert fused_members(graph)[-1] == ["conv2d", "pixel_shuffle", "binary"]
    assert all(members == ["conv2d", "prelu"] for members in fused_members(graph)[:-1])


def test_of_two_layers_that_meet_the_later_takes_the_sum() -> None:
    weights = {"w": torch.randn(2, 2, 1, 1)}
    nodes = (
        Node(Conv2d(), ("x", "w"), "a"),
        Node(Conv2d(), ("a2", "w"), "b"),
        Node(Binary("add"), ("a", "b"), "c"),
    )
    nodes = (nodes[0], Node(Unary("abs"), ("x",), "a2"), *nodes[1:])
    graph = fuse_epilogues(Graph((Input("x", (None, 2, None, None)),), nodes, ("c",), weights))
    assert graph.nodes[-1] == Node(Fused((Conv2d(), Binary("add")), (2, 1)), ("a2", "w", "a"), "c")


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (Node(Binary("sub"), ("x", "y"), "z"), "the running value is the second operand of a difference"),
        (Node(Binary("mul"), ("y", "y"), "z"), "the value is read twice by one node"),
        (Node(Binary("mul"), ("y", "x"), "z"), "a product with a value of the run is no residual"),
        (Node(Binary("add"), ("y", "m"), "z"), "the residual is smaller and would broadcast"),
        (Node(Binary("add"), ("y", "map"), "z"), "the constant is neither one number nor one a channel"),
        (Node(Binary("max"), ("y", "one"), "z"), "a maximum is no epilogue"),
        (Node(Unary("exp"), ("y",), "z"), "the op is no epilogue"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_fused(second: Node, why: str) -> None:
    weights = {"w": torch.randn(2, 2, 1, 1), "map": torch.randn(2, 1, 2), "one": torch.ones(())}
    nodes = (Node(Mean((2, 3)), ("x",), "m"), Node(Conv2d(), ("x", "w"), "y"), second)
    graph = Graph((Input("x", (None, 2, None, None)),), nodes, ("z",), weights)
    assert fuse_epilogues(graph).nodes == nodes, why


def test_no_more_than_two_residuals_are_fused() -> None:
    weights = {"w": torch.randn(2, 2, 1, 1)}
    sums = tuple(Node(Binary("add"), ("x", "y" if i == 0 else f"s{i - 1}"), f"s{i}") for i in range(3))
    graph = Graph((Input("x", (None, 2, None, None)),), (Node(Conv2d(), ("x", "w"), "y"), *sums), ("s2",), weights)
    assert [len(node.op.members) if isinstance(node.op, Fused) else 1 for node in fuse_epilogues(graph).nodes] == [3, 1]


def test_unfuse_gives_back_the_same_ops() -> None:
    module, example = build("rrdbnet")
    graph = from_module(module, example)
    again = unfuse(fuse_epilogues(graph))
    assert sorted(str(node.op) for node in again.nodes) == sorted(str(node.op) for node in graph.nodes)


def check_placements(graph: Graph, *inputs: Tensor) -> None:
    """Run a graph with its concats in shared buffers, full of NaN at first, and compare the outputs bit for bit."""
    shapes = graph.shapes(*(tuple(x.shape) for x in inputs))
    placements = concat_placements(graph, shapes)
    assert not {*(spec.name for spec in graph.inputs), *graph.weights} & placements.keys()
    buffers = {place.buffer: torch.full(shapes[place.buffer], torch.nan) for place in placements.values()}
    values = {**graph.weights, **dict(zip((spec.name for spec in graph.inputs), inputs, strict=True))}
    for node in graph.nodes:
        place = placements.get(node.output)
        if place is None:
            values[node.output] = node.op.apply(*(values[name] for name in node.inputs))
            continue
        channel, width = place.channel_offset, shapes[node.output][1]
        values[node.output] = buffers[place.buffer][:, channel : channel + width]
        if not isinstance(node.op, Concat):
            values[node.output].copy_(node.op.apply(*(values[name] for name in node.inputs)))
            continue
        for name in node.inputs:
            if placements.get(name) != Placement(place.buffer, channel):
                buffers[place.buffer][:, channel : channel + shapes[name][1]] = values[name]
            channel += shapes[name][1]
    for name, expected in zip(graph.outputs, graph.evaluate(*inputs), strict=True):
        assert torch.equal(values[name], expected)


def test_a_dense_block_shares_one_buffer() -> None:
    """Growing concats are views of the last one's buffer; the block's input and each growth are written once."""
    graph = fuse_epilogues(
        from_module(nn.Sequential(nn.Conv2d(4, 4, 1), dense(), dense()).eval(), torch.rand(1, 4, 8, 8))
    )
    shapes = graph.shapes((1, 4, 8, 8))
    placements = concat_placements(graph, shapes)
    concats = [node for node in graph.nodes if isinstance(node.op, Concat)]
    assert [len(node.inputs) for node in concats] == [2, 3, 4, 2, 3, 4]
    for block in (concats[:3], concats[3:]):
        largest = block[-1]
        assert {placements[node.output] for node in block} == {Placement(largest.output, 0)}
        assert [placements[name].channel_offset for name in largest.inputs] == [0, 4, 6, 8]
        assert {placements[name].buffer for name in largest.inputs} == {largest.output}


def test_values_that_cannot_be_placed_are_left_out() -> None:
    """Two concats in different order share a value: the later one holds it. Inputs and outputs are nowhere."""
    weights = {"w": torch.randn(2, 2, 1, 1)}
    nodes = (
        Node(Conv2d(), ("x", "w"), "a"),
        Node(Activation("relu"), ("a",), "b"),
        Node(Activation("tanh"), ("a",), "c"),
        Node(Concat(), ("a", "b"), "first"),
        Node(Concat(), ("b", "a", "x", "c"), "second"),
        Node(Concat(), ("c", "c"), "twice"),
    )
    graph = Graph((Input("x", (None, 2, None, None)),), nodes, ("first", "second", "twice", "c"), weights)
    shapes = graph.shapes((1, 2, 3, 3))
    assert concat_placements(graph, shapes) == {
        "second": Placement("second", 0),
        "b": Placement("second", 0),
        "a": Placement("second", 2),
    }
    check_placements(graph, torch.rand(1, 2, 3, 3))


def test_a_concat_within_a_concat_is_placed_with_its_parts() -> None:
    weights = {"w": torch.randn(2, 2, 1, 1)}
    nodes = (
        Node(Conv2d(), ("x", "w"), "a"),
        Node(Conv2d(), ("a", "w"), "b"),
        Node(Concat(), ("a", "b"), "inner"),
        Node(Slice(1, 0, 3), ("inner",), "c"),
        Node(Concat(), ("c", "inner"), "outer"),
        Node(PixelShuffle(1), ("outer",), "end"),
    )
    graph = Graph((Input("x", (None, 2, None, None)),), nodes, ("end",), weights)
    assert concat_placements(graph, graph.shapes((1, 2, 3, 3))) == {
        "outer": Placement("outer", 0),
        "c": Placement("outer", 0),
        "inner": Placement("outer", 3),
        "a": Placement("outer", 3),
        "b": Placement("outer", 5),
    }
