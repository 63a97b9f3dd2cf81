"""Residual branches in reduced precision: the same function, rounded only where the rounding is absorbed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from tests.conftest import Compare
from tests.networks import Network, random_network
from tilefuse.backends import registry
from tilefuse.calibration import picture
from tilefuse.capture import from_module
from tilefuse.errors import BackendError
from tilefuse.export.generators.edsr import EDSR
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.graph import Graph
from tilefuse.ops import Cast, Conv2d
from tilefuse.passes import reduce_branches
from tilefuse.source import load_model


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


def conv(before: int = 8, after: int = 8) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def network(*body: nn.Module) -> Graph:
    """Capture a body between a first and a last layer, as in generators."""
    torch.manual_seed(0)
    return from_module(nn.Sequential(conv(3), *body, conv(8, 3)), torch.rand(1, 3, 9, 8))


def reduced_layers(graph: Graph | None) -> list[str]:
    """Name the weights of the layers that are computed in bfloat16."""
    assert graph is not None
    layers = [node for node in graph.nodes if isinstance(node.op, Conv2d)]
    kinds = {node.inputs[1]: graph.weights[node.inputs[1]].dtype for node in layers}
    return [name.removesuffix(".bfloat16") for name, kind in kinds.items() if kind == torch.bfloat16]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "rrdbnet": lambda: RRDBNet(num_feat=8, num_block=2, num_grow_ch=16),
    "rrdbnet-unshuffle": lambda: RRDBNet(num_feat=8, num_block=2, num_grow_ch=16, unshuffle=2),
    "edsr": lambda: EDSR(num_feat=8, num_block=20, res_scale=0.1),
    "normed": lambda: nn.Sequential(conv(3), Residual(conv(), nn.InstanceNorm2d(8), nn.PReLU(8), conv()), conv(8, 3)),
    "reflected": lambda: nn.Sequential(
        conv(3), Residual(conv(), nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3)), conv(8, 3)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_same_function(name: str, assert_close: Compare) -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 10, 8)
    graph = from_module(NETWORKS[name]().eval(), x)
    # In a type of more precision nothing is rounded.
    rewritten = reduce_branches(graph, torch.float64)
    assert rewritten is not None
    found = rewritten.evaluate(x)[0]
    assert found.dtype == torch.float32
    assert_close(found, graph.evaluate(x)[0], max_abs=1e-5, what=name)


@pytest.mark.slow
@given(random_network())
def test_same_function_of_random_networks(drawn: Network) -> None:
    x = torch.rand(1, drawn.in_channels, drawn.size(3), drawn.size(2))
    graph = from_module(drawn.module, x)
    rewritten = reduce_branches(graph, torch.float64)
    if rewritten is not None:
        expected = graph.evaluate(x)[0]
        found = rewritten.evaluate(x)[0]
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= 1e-4 * (1 + expected.abs().max())


def test_only_dense_blocks_of_rrdbnet_are_rounded() -> None:
    graph = from_module(NETWORKS["rrdbnet"]().eval(), torch.rand(1, 3, 9, 8))
    rewritten = reduce_branches(graph, torch.bfloat16)
    names = reduced_layers(rewritten)
    assert len(names) == 2 * 3 * 5
    assert all(".rdb" in name for name in names)
    assert rewritten is not None
    # Within a block values stay as they are: one cast in, one out.
    assert sum(isinstance(node.op, Cast) for node in rewritten.nodes) == 2 * 3 * 2


def test_rounding_is_absorbed() -> None:
    model = load_model("edsr-x2")
    assert model.graph is not None
    x = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    expected = model.graph.evaluate(x)[0]
    branches = reduce_branches(model.graph, torch.bfloat16)
    assert branches is not None
    everything = model.graph.to(dtype=torch.bfloat16).evaluate(x.bfloat16())[0].float()
    absorbed, plain = (float((found - expected).abs().max()) * 255 for found in (branches.evaluate(x)[0], everything))
    print(f"levels: all layers in bf16 {plain:.2f}, branches {absorbed:.2f}")
    assert absorbed < 1
    assert plain > 4 * absorbed


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (lambda: (conv(), nn.ReLU(), conv()), "there is no branch"),
        (lambda: (Residual(conv()), conv(), conv(), conv()), "the branch is a small part"),
        (lambda: (Residual(nn.Tanh()), conv()), "the branch has no layer"),
    ],
)
def test_no_gain_is_no_rewriting(body: Callable[[], tuple[nn.Module, ...]], why: str) -> None:
    assert reduce_branches(network(*body()), torch.bfloat16) is None, why


def test_outer_branches_are_left_alone() -> None:
    graph = network(Residual(Residual(conv(), nn.ReLU(), conv()), Residual(conv(), conv()), conv()))
    # The layer behind the inner blocks is a branch's too, but of all of them together.
    assert len(reduced_layers(reduce_branches(graph, torch.bfloat16))) == 4


def test_a_network_that_corrects_the_image_is_left_alone() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(conv(3), Residual(conv(), conv(), conv()), conv(8, 3))
    assert len(reduced_layers(reduce_branches(from_module(inner, torch.rand(1, 3, 9, 8)), torch.bfloat16))) == 3
    assert reduce_branches(from_module(Residual(inner), torch.rand(1, 3, 9, 8)), torch.bfloat16) is None


def test_what_leaves_a_branch_by_another_way_keeps_it_from_being_rounded() -> None:
    class Leaking(nn.Module):
        def __init__(self, leaks: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.one, self.two, self.three = conv(3), conv(), conv(), conv()
            self.last, self.leaks = conv(16, 3), leaks

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            inner = self.one(x)
            total = x + self.three(self.two(inner))
            return self.last(torch.cat((total, inner if self.leaks else total), 1))  # type: ignore[no-any-return]

    whole, leaking = (from_module(Leaking(leaks), torch.rand(1, 3, 9, 8)) for leaks in (False, True))
    assert len(reduced_layers(reduce_branches(whole, torch.bfloat16))) == 3
    assert reduce_branches(leaking, torch.bfloat16) is None


def test_openvino_keeps_a_residual_network_within_a_level_on_noise() -> None:
    model = load_model("edsr-x2")
    assert model.graph is not None
    x = torch.from_numpy(picture(72, 72, 3, 1, np.dtype(np.uint8)).copy()).permute(0, 3, 1, 2)
    x = x.float() / 255
    try:
        session = registry.get("openvino").compile(model, [tuple(x.shape)], device="cpu", precision="bf16", threads=1)
    except BackendError as reason:
        pytest.skip(str(reason))
    expected = model.graph.evaluate(x)[0]
    error = (session.run(x)[0] - expected).abs().max() * 255
    print(f"max {error:.3f} levels")
    # Not fp32 by another name, and well within the level.
    assert 0.02 < error < 0.9
