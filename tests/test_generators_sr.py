"""ESPCN and SRVGGNetCompact: their formulas, keys, halos, and torch.export with dynamic height and width."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import Compare
from tilefuse.errors import ModelError
from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.espcn import ESPCN

SIZES = [(1, 1), (1, 17), (2, 3), (17, 5), (3, 63)]


def _seeded(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network.eval()


def _published_espcn(weights: dict[str, Tensor], x: Tensor, scale: int) -> Tensor:
    x = torch.tanh(F.conv2d(x, weights["conv1.weight"], weights["conv1.bias"], padding=2))
    x = torch.tanh(F.conv2d(x, weights["conv2.weight"], weights["conv2.bias"], padding=1))
    return F.pixel_shuffle(F.conv2d(x, weights["conv3.weight"], weights["conv3.bias"], padding=1), scale)


def _published_compact(weights: dict[str, Tensor], x: Tensor, depth: int, scale: int) -> Tensor:
    out = x
    for layer in range(0, 2 * depth + 3, 2):
        out = F.conv2d(out, weights[f"body.{layer}.weight"], weights[f"body.{layer}.bias"], padding=1)
        if layer < 2 * depth + 2:
            out = torch.where(out > 0, out, out * weights[f"body.{layer + 1}.weight"].view(1, -1, 1, 1))
    enlarged = x.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return F.pixel_shuffle(out, scale) + enlarged


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_plain_espcn_is_the_published_network(scale: int, channels: int, assert_close: Compare) -> None:
    network = _seeded(ESPCN(scale, channels, (7, 5)))
    assert [key for key, _ in network.named_parameters()] == [
        f"conv{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")
    ]
    for size in SIZES:
        x = torch.rand(2, channels, *size)
        assert_close(network(x), _published_espcn(network.state_dict(), x, scale), what=f"x{scale} {size}")


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_compact_is_the_published_network(scale: int, assert_close: Compare) -> None:
    network = _seeded(SRVGGNetCompact(num_feat=6, num_conv=3, upscale=scale))
    assert set(network.state_dict()) == {
        *(f"body.{i}.{kind}" for i in (0, 2, 4, 6, 8) for kind in ("weight", "bias")),
        *(f"body.{i}.weight" for i in (1, 3, 5, 7)),
    }
    for size in SIZES:
        x = torch.rand(2, 3, *size)
        assert_close(network(x), _published_compact(network.state_dict(), x, 3, scale), what=f"x{scale} {size}")


@pytest.mark.parametrize("act_type", ["relu", "leakyrelu"])
def test_compact_has_other_activations(act_type: str) -> None:
    network = SRVGGNetCompact(num_feat=4, num_conv=1, upscale=2, act_type=act_type)
    assert "body.1.weight" not in network.state_dict()
    assert network(torch.rand(1, 3, 5, 4)).shape == (1, 3, 10, 8)


def test_compact_refuses_an_unknown_activation() -> None:
    with pytest.raises(ModelError, match="swish"):
        SRVGGNetCompact(act_type="swish")


@pytest.mark.parametrize(
    ("network", "last"),
    [(ESPCN(3, features=(4, 4), residual=True), "residual"), (SRVGGNetCompact(3, 3, 4, 1, 3), "body.4")],
    ids=["espcn", "compact"],
)
def test_a_silent_last_convolution_leaves_the_nearest_enlargement(
    network: nn.Module, last: str, assert_close: Compare
) -> None:
    layer = network.get_submodule(last)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 3, 3, 17)
    assert_close(network(x), x.repeat_interleave(3, 2).repeat_interleave(3, 3), max_abs=0.0)


def test_residual_espcn_has_keys_of_its_own() -> None:
    keys = set(ESPCN(2, residual=True).state_dict())
    assert {"prelu1.weight", "prelu2.weight", "residual.weight"} <= keys
    assert "conv3.weight" not in keys


@pytest.mark.parametrize(
    ("network", "halo"),
    [
        (ESPCN(2, features=(4, 4)), 4),
        (ESPCN(2, features=(4, 4), residual=True), 4),
        (SRVGGNetCompact(num_feat=4, num_conv=1, upscale=2), 3),
        (SRVGGNetCompact(num_feat=4, num_conv=6, upscale=2), 8),
    ],
    ids=["espcn", "espcn residual", "compact 1", "compact 6"],
)
def test_an_impulse_reaches_as_far_as_the_halo(network: nn.Module, halo: int) -> None:
    size = 2 * halo + 7
    x = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    _seeded(network).double()(x)[0, :, size - 1 : size + 1, size - 1 : size + 1].sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    middle = size // 2
    assert (touched - middle).abs().max().item() == halo


@pytest.mark.parametrize(
    "network",
    [
        ESPCN(2, features=(6, 4)),
        ESPCN(4, features=(6, 4), residual=True),
        SRVGGNetCompact(3, 3, 4, 2, 3),
        SRVGGNetCompact(3, 3, 4, 1, 1),
    ],
    ids=["espcn", "espcn residual", "compact x3", "compact x1"],
)
def test_export_keeps_height_and_width_dynamic(network: nn.Module, assert_close: Compare) -> None:
    network = _seeded(network)
    sizes = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(network, (torch.rand(2, 3, 12, 10),), dynamic_shapes=(sizes,)).module()
    for size in SIZES:
        x = torch.rand(2, 3, *size)
        assert_close(program(x), network(x), max_abs=1e-6, what=str(size))
