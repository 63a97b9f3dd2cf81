"""Graph to ncnn: the param text's form, what is merged and split, and what is refused by name."""

from __future__ import annotations

import struct
from fractions import Fraction

import pytest
import torch

from tests import vocabulary
from tests.vocabulary import Builder, single
from tilefuse.emitters.ncnn import NcnnModel, to_ncnn
from tilefuse.emitters.ncnn_sheet import Layer
from tilefuse.errors import BackendError, ModelError
from tilefuse.graph import Graph, Input
from tilefuse.ops import Binary, Concat, Conv2d, Linear, Mean, Pad, Pool2d, PRelu, Reshape, Resize, Slice
from tilefuse.passes import fuse_epilogues

IMAGE = (1, 3, 8, 10)


def lines(network: NcnnModel) -> list[list[str]]:
    """Check the counts of the header and return the layers, cut into words."""
    magic, counts, *layers = network.param.splitlines()
    words = [layer.split() for layer in layers]
    blobs = {blob for line in words for blob in line[4 : 4 + int(line[2]) + int(line[3])]}
    assert magic == "7767517"
    assert counts == f"{len(words)} {len(blobs)}"
    return words


def kinds(network: NcnnModel) -> list[str]:
    return [line[0] for line in lines(network)]


@pytest.mark.parametrize("name", vocabulary.networks())
def test_every_blob_is_made_once_and_read_once(name: str) -> None:
    network = to_ncnn(vocabulary.networks()[name], (1, 3, 12, 24))
    made, read = [], list(network.outputs)
    for line in lines(network):
        inputs, outputs = int(line[2]), int(line[3])
        assert set(line[4 : 4 + inputs]) <= set(made), "blobs are made before they are read"
        read += line[4 : 4 + inputs]
        made += line[4 + inputs : 4 + inputs + outputs]
    assert len(set(made)) == len(made)
    assert sorted(read) == sorted(made), "each is read, by one layer"


def test_a_value_read_twice_is_split() -> None:
    b = Builder()
    x = b.conv("x", 3, 4)
    network = to_ncnn(b.graph(b.add(Binary("add"), x, x), x), IMAGE)
    split = next(line for line in lines(network) if line[0] == "Split")
    assert split[2:4] == ["1", "3"]


def test_a_relu_read_by_nobody_else_is_merged_into_its_convolution() -> None:
    b = Builder()
    alone = b.act(b.conv("x", 3, 4))
    shared = b.conv(alone, 4, 4)
    network = to_ncnn(b.graph(b.add(Binary("add"), b.act(shared), shared)), IMAGE)
    assert kinds(network) == ["Input", "Convolution", "Convolution", "Split", "ReLU", "BinaryOp"]
    assert "9=2 -23310=1,2.00000000e-01" in network.param


def test_fused_nodes_are_written_as_their_members() -> None:
    graph = vocabulary.rrdb()
    assert kinds(to_ncnn(fuse_epilogues(graph), IMAGE)) == kinds(to_ncnn(graph, IMAGE))


def test_weights_are_tagged_float32_in_order() -> None:
    weight, bias = torch.arange(6.0).view(2, 3, 1, 1), torch.tensor([7.0, 8.0])
    graph = single(Conv2d(), weight, bias)
    assert to_ncnn(graph, IMAGE).weights == struct.pack("<I8f", 0, 0, 1, 2, 3, 4, 5, 7, 8)


@pytest.mark.parametrize("value", [0.1, -1 / 3, 3.40282347e38, -1e-30, 1.0, 123456.79])
def test_floats_survive_the_text(value: float) -> None:
    text = Layer("Clip", ("a",), "b", {0: value}).text().removeprefix("0=")
    assert len(text) <= 15, "ncnn reads no more characters"
    assert "e" in text, "ncnn takes a number without a point or exponent as an integer"
    assert torch.tensor(float(text)) == torch.tensor(value)


def test_interpolation_of_tiny_images_is_bordered_and_cropped() -> None:
    graph = single(Resize("cubic", (Fraction(2), Fraction(2))))
    assert kinds(to_ncnn(graph, (1, 3, 4, 4))) == ["Input", "Interp"]
    assert kinds(to_ncnn(graph, (1, 3, 2, 4))) == ["Input", "Padding", "Interp", "Crop"]


@pytest.mark.parametrize(
    ("graph", "named"),
    [
        (single(Pad((1, -1, 0, 0), "circular")), "pad.*circular padding that also crops"),
        (single(Conv2d(), inputs=2), "conv2d.*the weight is computed"),
        (single(Slice(3, 0, None, 2)), "slice.*a step of 2"),
        (single(Mean((0,))), "mean.*batch"),
        (single(Concat(0), inputs=2), "one image at a time.*2x3x8x10"),
        (single(Reshape((3, -1))), "one image at a time.*3x80"),
        (single(PRelu(), torch.ones(8, 10)), "prelu.*one a channel"),
        (single(Linear(), torch.ones(2, 10)), "linear.*rank 4"),
        (single(Pool2d("max", (2, 2), (2, 2), dilation=(2, 2))), "pool2d.*dilation"),
        (single(Binary("add"), torch.ones(2, 3, 1, 1)), "one image at a time|batch axis"),
        (single(Resize("linear", (Fraction(2), Fraction(2)), coordinates="asymmetric")), "resize.*asymmetric"),
        (single(Resize("cubic", (Fraction(2), Fraction(2)), cubic_a=-0.5)), "resize.*cubic kernel"),
        (single(Resize("nearest", (Fraction(2), Fraction(2)), coordinates="half_pixel")), "resize.*half_pixel"),
        (single(Resize("linear", (Fraction(3, 4), Fraction(3, 4)))), "resize.*no whole size from 10"),
        (Graph((Input("x", (None,) * 4),), (), ("w",), {"w": torch.ones(1, 2)}), "constant 'w'"),
    ],
)
def test_what_ncnn_lacks_is_refused_by_name(graph: Graph, named: str) -> None:
    with pytest.raises(BackendError, match=f"(?s){named}") as caught:
        to_ncnn(graph, *[IMAGE] * len(graph.inputs))
    assert "\n" not in str(caught.value)


def test_a_size_the_graph_can_not_take_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="pad"):
        to_ncnn(vocabulary.stylised(), (1, 3, 1, 1))
