"""The footprint against impulses and against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from tests.networks import Network, random_network
from tilefuse.capture import from_module
from tilefuse.errors import ModelError
from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.edsr import EDSR
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.footprint import Axis, Footprint, footprint
from tilefuse.graph import Graph, Node
from tilefuse.ops import Activation, BatchNorm, Binary, Clamp, Pool2d, PRelu, Unary

pytestmark = pytest.mark.thorough


def linear_twin(graph: Graph) -> Graph:
    """Same geometry, but linear with positive weights: an impulse can neither cancel nor die on its way."""
    nodes = []
    for node in graph.nodes:
        op, inputs = node.op, node.inputs
        match op:
            case Activation() | Clamp() | BatchNorm() | PRelu() | Unary():
                op, inputs = Pool2d("avg", (1, 1), (1, 1)), inputs[:1]
            case Binary():
                op = Binary("add")
            case Pool2d():
                op = replace(op, kind="avg")
        nodes.append(Node(op, inputs, node.output))
    weights = {}
    for name, tensor in graph.weights.items():
        positive = torch.rand(tensor.shape, dtype=torch.float64) + 0.5
        weights[name] = positive / tensor[0].numel() if tensor.ndim == 4 else torch.zeros_like(positive)
    return replace(graph, nodes=tuple(nodes), weights=weights)


def impulse_reach(graph: Graph, found: Footprint, dim: int) -> tuple[int, int]:
    """Input pixels ahead of and behind an aligned output block from which an impulse along a whole line reaches it."""
    axis, across = (found.y, found.x) if dim == 0 else (found.x, found.y)
    step, block = axis.alignment, int(axis.scale * axis.alignment)
    # Far from both borders: what is reflected there reaches outputs farther off than within the image.
    radius = -(-(axis.before + axis.after) // step) + 2
    # Across the line there must be an output that reads the image itself, not its padding alone; unpadded convolutions
    # leave the result short by `offset`.
    size = [across.padded(across.before + across.after + 1 + _cut(across), found.minimum_px)] * 2
    size[dim] = axis.padded(step * (2 * radius + 1) + _cut(axis), found.minimum_px)
    twin = linear_twin(graph)
    # One image an impulse: every position of one aligned block, and a quiet one to compare with.
    images = torch.zeros(step + 1, graph.inputs[0].shape[1] or 1, *size, dtype=torch.float64)
    for phase in range(step):
        images[phase].select(1 + dim, step * radius + phase).fill_(1.0)
    results = twin.evaluate(images)[0]
    assert torch.isfinite(results).all()
    moved = (results[:-1] - results[-1]).abs().amax([d for d in (1, 2, 3) if d != 2 + dim])
    before = after = 0
    for phase, output in (moved > 0).nonzero().tolist():
        start, position = output // block * step, step * radius + phase
        before, after = max(before, start - position), max(after, position - (start + step - 1))
    return before, after


def _cut(axis: Axis) -> int:
    """Input pixels by which the result is short."""
    return int(-(-max(0, -axis.offset) // axis.scale))


def check_reach(graph: Graph) -> Footprint:
    found = footprint(graph)
    for axis, dim in ((found.y, 0), (found.x, 1)):
        before, after = impulse_reach(graph, found, dim)
        print(f"impulse {before}, {after}; footprint {axis}")
        assert before <= axis.before <= before + axis.alignment
        assert after <= axis.after <= after + axis.alignment
    return found


@given(network=random_network(valid=True))
@settings(max_examples=100)
def test_halo_is_what_an_impulse_reaches(network: Network) -> None:
    size = network.size(2)
    graph = from_module(network.module, torch.rand(2, network.in_channels, size, size))
    found = check_reach(graph)
    assert found.scale == network.scale
    assert network.divisor % found.alignment == 0


@pytest.mark.parametrize(
    ("module", "halo", "scale", "alignment"),
    [
        (ESPCN(4), 4, 4, 1),
        (SRVGGNetCompact(num_feat=4, num_conv=16), 18, 4, 1),
        (SRVGGNetCompact(num_feat=4, num_conv=32), 34, 4, 1),
        (RRDBNet(num_feat=4, num_block=6, num_grow_ch=2), 94, 4, 1),
        (RRDBNet(num_feat=4, num_block=23, num_grow_ch=2), 349, 4, 1),
        (RRDBNet(num_in_ch=3, num_feat=4, num_block=3, num_grow_ch=2, unshuffle=2), 98, 2, 2),
        pytest.param(
            RRDBNet(num_in_ch=3, num_feat=4, num_block=23, num_grow_ch=2, unshuffle=2),
            698,
            2,
            2,
            marks=pytest.mark.slow,
        ),
        (EDSR(upscale=2, num_feat=4, num_block=16), 36, 2, 1),
    ],
    ids=["espcn", "compact-16", "compact-32", "rrdb-6", "rrdb-23", "rrdb-3-x2", "rrdb-23-x2", "edsr-16"],
)
def test_known_receptive_fields(module: nn.Module, halo: int, scale: int, alignment: int) -> None:
    found = footprint(from_module(module, torch.rand(1, 3, 16, 16)))
    assert (found.halo, found.scale, found.alignment) == (halo, Fraction(scale), alignment)
    assert found.global_ops == ()


def test_known_receptive_field_by_impulse() -> None:
    check_reach(from_module(SRVGGNetCompact(num_feat=2, num_conv=3), torch.rand(1, 3, 16, 16)))
    check_reach(from_module(RRDBNet(num_feat=2, num_block=1, num_grow_ch=1, unshuffle=2), torch.rand(1, 3, 16, 16)))


def test_ops_with_global_reach_are_named() -> None:
    class Global(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(4)
            self.wrap = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.wrap(x))
            return y * (1 + y.mean((2, 3), keepdim=True))

    names = footprint(from_module(Global(), torch.rand(1, 3, 16, 16))).global_ops
    assert [name.split(" (")[0] for name in names] == ["circular padding", "instance_norm", "mean over space"]


def test_a_latent_decoder_has_no_footprint() -> None:
    decoder = nn.Sequential(nn.Linear(8, 16), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 3, 4, 2, 1))
    with pytest.raises(ModelError, match="no image of free size"):
        footprint(from_module(decoder, torch.rand(2, 8)))
