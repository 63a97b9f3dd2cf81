"""Captured graphs against the modules they come from, and every refusal by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import Compare
from tests.models import MODELS, Normed, OddUNet, build
from tests.networks import Network, random_network
from tilefuse.capture import from_module
from tilefuse.errors import ModelError
from tilefuse.graph import Graph

Forward = Callable[[nn.Conv2d, Tensor], Tensor]


class Wrapped(nn.Module):
    """A function of one image and one convolution, as a module."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv, x)


def ops(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(random_network(global_ops=True), st.integers(0, 4), st.integers(0, 4))
def test_random_networks_are_captured_exactly(network: Network, rows: int, columns: int) -> None:
    graph = from_module(network.module, torch.rand(1, network.in_channels, network.size(3), network.size(4)))
    x = torch.randn(2, network.in_channels, network.size(rows), network.size(columns))
    with torch.no_grad():
        expected = network.module(x)
    (actual,) = graph.evaluate(x)
    assert actual.shape == expected.shape
    error = (actual - expected) / expected.abs().max().clamp(min=1)
    assert error.abs().max() <= 1e-5, f"max {error.abs().max():.2e} rms {error.square().mean().sqrt():.2e}"


@pytest.mark.parametrize("name", MODELS)
def test_generators_are_captured_exactly(name: str, assert_close: Compare) -> None:
    module, example = build(name)
    graph = from_module(module, example)
    assert graph.inputs[0].name == ("latent" if name.startswith("dcgan") else "image")
    step = {"rrdbnet-unshuffle": 2, "unet": 4}.get(name, 1)
    for n, height, width in ((1, 8, 12), (2, 17 * step, 6 * step), (3, 9 * step, 31 * step)):
        trailing = example.shape[2:] if name.startswith("dcgan") else (height, width)
        x = torch.randn(n, example.shape[1], *trailing)
        with torch.no_grad():
            expected = module(x)
        bound = 1e-5 * max(1.0, expected.abs().max().item())
        assert_close(graph.evaluate(x)[0], expected, max_abs=bound, what=f"{name} {n}x{height}x{width}")


def test_weights_keep_their_names_and_are_copies() -> None:
    module, example = build("compact")
    graph = from_module(module, example)
    assert set(graph.weights) == set(module.state_dict())
    with torch.no_grad():
        module.body[0].weight.zero_()
    assert graph.weights["body.0.weight"].abs().max() > 0


def test_weights_computed_from_parameters_are_folded() -> None:
    graph = from_module(Normed().eval(), torch.rand(1, 3, 8, 8))
    assert ops(graph) == ["binary", "binary", "conv2d", "conv2d", "binary", "binary", "binary"]
    assert "weighted.parametrizations.weight.0._weight_norm" in graph.weights


def test_a_tied_weight_is_stored_once() -> None:
    module, example = build("shared")
    graph = from_module(module, example)
    assert sum(name.endswith(".weight") and tensor.ndim == 4 for name, tensor in graph.weights.items()) == 2


def test_the_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU())
    module[1].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    graph = from_module(module, torch.rand(1, 3, 8, 8))
    assert [part.training for part in module] == [True, False, True, True]
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module[0].weight.requires_grad
    assert ops(graph) == ["conv2d", "batch_norm", "activation"]


def test_modes_are_put_back_after_a_refusal() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1))
    with pytest.raises(ModelError):
        from_module(module, torch.rand(1, 3, 8, 8))
    assert module.training
    assert module[0].training


def test_a_unet_that_resizes_to_its_skips_is_captured_as_a_scale() -> None:
    graph = from_module(OddUNet().eval(), torch.rand(1, 3, 16, 16))
    scales = [node.op.scale for node in graph.nodes if node.op.name == "resize"]
    assert scales == [(Fraction(2), Fraction(2))] * 2


def test_a_module_of_one_size_gives_a_graph_of_that_size() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 5)).eval()
    graph = from_module(module, torch.rand(1, 3, 8, 8))
    assert graph.inputs[0].shape == (None, 3, 8, 8)


def test_several_inputs_and_outputs() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, depth: Tensor, latent: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return x + F.interpolate(depth, scale_factor=2), {"latent": latent * 2}

    graph = from_module(Both(), torch.rand(1, 1, 8, 12), torch.rand(1, 1, 4, 6), torch.rand(1, 5))
    assert [(spec.name, spec.shape) for spec in graph.inputs] == [
        ("image", (None, 1, None, None)),
        ("depth", (None, 1, None, None)),
        ("latent", (None, 5)),
    ]
    assert len(graph.outputs) == 2


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda c, x: F.interpolate(c(x), size=x.shape[2:], mode="bicubic"), ["conv2d"]),
        (lambda c, x: F.interpolate(x, size=(2 * x.shape[2], 3 * x.shape[3])), ["resize"]),
        (lambda c, x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), ["resize"]),
        (lambda c, x: F.interpolate(x, scale_factor=3, mode="bicubic", align_corners=True), ["resize"]),
        (lambda c, x: F.interpolate(x, scale_factor=1.3, mode="bilinear", align_corners=True), ["resize"]),
        (lambda c, x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), ["resize"]),
        (lambda c, x: F.interpolate(x, scale_factor=0.5, mode="area"), ["pool2d"]),
        (lambda c, x: F.interpolate(x[:, :, :, ::2], scale_factor=(1.0, 2.0)), ["slice", "resize"]),
        (lambda c, x: F.interpolate(x, size=(3, 3)), ["resize"]),
        (lambda c, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), ["pool2d"]),
        (lambda c, x: F.max_pool2d(x, (2, 3), stride=1, ceil_mode=True), ["pool2d"]),
        (lambda c, x: F.adaptive_max_pool2d(x, (2, 1)), ["adaptive_pool2d"]),
        (lambda c, x: F.interpolate(F.adaptive_avg_pool2d(x, 1), size=x.shape[2:]) * x, ["adaptive_pool2d", "binary"]),
        (lambda c, x: x.mean((2, 3), keepdim=True).expand_as(x) + x, ["mean", "binary"]),
        (lambda c, x: c(x)[:, :, 1:-2, 3:], ["conv2d", "pad", "pad"]),
        (lambda c, x: c(x)[:, :, : x.shape[2], :], ["conv2d"]),
        (lambda c, x: x[:, 1:3], ["slice"]),
        (lambda c, x: x.narrow(1, -2, 2), ["slice"]),
        (lambda c, x: x.narrow(3, 1, x.shape[3] - 2), ["pad"]),
        (lambda c, x: torch.cat([part.abs() for part in x.split([1, 3], 1)][::-1], 1), None),
        (lambda c, x: x.split(3, 1)[1], ["slice"]),
        (lambda c, x: torch.cat([x] * 3, 1), ["concat"]),
        (lambda c, x: torch.cat([x], 1), []),
        (lambda c, x: x.repeat(1, 2, 1, 1), ["concat"]),
        (lambda c, x: F.pad(x, (1, 2)), ["pad"]),
        (lambda c, x: F.pad(x, (-1, 2, 3, -2), value=0.5), ["pad"]),
        (lambda c, x: F.pad(x, (0, 0, 0, 0)), []),
        (lambda c, x: F.pad(x, (1, 2, 0, 1), mode="circular"), ["pad"]),
        (lambda c, x: x.flatten(2), ["reshape"]),
        (lambda c, x: x.unsqueeze(4).squeeze(4), ["reshape", "reshape"]),
        (lambda c, x: x.reshape(x.shape[0], 2, 2, x.shape[2] * x.shape[3]), ["reshape"]),
        (lambda c, x: 1 - x, ["binary"]),
        (lambda c, x: torch.rsub(x, c(x), alpha=2), None),
        (lambda c, x: torch.sub(x, c(x), alpha=0.5), ["conv2d", "binary", "binary"]),
        (lambda c, x: x * c.bias.view(1, -1, 1, 1) / 3, ["binary", "binary"]),
        (lambda c, x: 2 / (x + 1), None),
        (lambda c, x: torch.maximum(x, c(x)) - torch.minimum(x, c.bias.view(4, 1, 1)), None),
        (lambda c, x: x**2 + (x + 1) ** 0.5 + (x + 1) ** -0.5 + (x + 1) ** -1 + x**1, None),
        (lambda c, x: (x.abs() + 1).log().exp().erf().neg().square().sqrt().add(1).rsqrt().reciprocal(), None),
        (lambda c, x: x.clamp(0.2) + x.clamp_max(0.5) + x.clip(0.1, 0.9) + F.hardtanh(x, 0, 0.5) + F.relu6(x), None),
        (lambda c, x: F.selu(x) + F.celu(x) + F.elu(x, 0.5) + F.softplus(x) + F.gelu(x, approximate="tanh"), None),
        (lambda c, x: F.prelu(x.flatten(2).mean(2), c.bias), ["reshape", "mean", "prelu"]),
        (lambda c, x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-3).sqrt(), None),
        (lambda c, x: x.std(1, keepdim=True), None),
        (lambda c, x: x.var((2, 3), correction=0, keepdim=True), None),
        (lambda c, x: F.instance_norm(x, c.bias, c.bias.abs() + 1, None, None, False), ["batch_norm"]),
        (lambda c, x: F.group_norm(x, 2), ["group_norm"]),
        (lambda c, x: torch.mm(x.mean((2, 3)), c.weight[:, :, 0, 0]), ["mean", "linear"]),
        (lambda c, x: torch.addmm(c.bias, x.mean((2, 3)), c.weight[:, :, 0, 0], beta=2, alpha=3), None),
        (lambda c, x: x.contiguous().clone().detach().float(), []),
        (lambda c, x: F.conv2d(x, c.weight[:, :2], groups=2, padding="same", dilation=2), ["conv2d"]),
        (lambda c, x: F.conv2d(x, c.weight[:, :, :2, :2], padding="same"), ["conv2d"]),
        (lambda c, x: F.conv_transpose2d(x, c.weight, c.bias, (2, 3), 1, (1, 2)), ["conv_transpose2d"]),
    ],
)
def test_calls_are_converted(function: Forward, expected: list[str] | None, assert_close: Compare) -> None:
    module = Wrapped(function).eval()
    graph = from_module(module, torch.rand(1, 4, 8, 12))
    if expected is not None:
        assert ops(graph) == expected
    x = torch.rand(2, 4, 10, 6)
    with torch.no_grad():
        result = module(x)
    assert_close(graph.evaluate(x)[0], result, max_abs=2e-5)


def test_an_op_in_place_changes_what_reads_the_tensor_later(assert_close: Compare) -> None:
    def forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
        y = conv(x)
        z = y * 2
        F.relu_(y)
        y += 1
        return y + z

    module = Wrapped(forward)
    graph = from_module(module, torch.rand(1, 4, 8, 8))
    x = torch.randn(2, 4, 5, 6)
    assert_close(graph.evaluate(x)[0], module(x).detach())


def write_into_view(conv: nn.Conv2d, x: Tensor) -> Tensor:
    y = conv(x)
    y[:, :2].relu_()
    return y


def pad_inside(conv: nn.Conv2d, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    return conv(F.pad(x, (0, -width % 4, 0, -height % 4), mode="reflect"))[:, :, :height, :width]


def autocast(conv: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return conv(x)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda c, x: c(x).softmax(1), r"aten\.softmax\.int .*outside the op vocabulary.*torch_eager"),
        (lambda c, x: x.permute(0, 2, 3, 1), r"aten\.permute"),
        (lambda c, x: torch.einsum("nchw,cd->ndhw", x, c.bias.diag()), r"aten\.einsum"),
        (lambda c, x: torch.bmm(x.flatten(2), x.flatten(2).mT), r"aten\.(mT|transpose|bmm)"),
        (lambda c, x: F.scaled_dot_product_attention(x, x, x), r"aten\.scaled_dot_product_attention"),
        (lambda c, x: F.interpolate(x, scale_factor=2, mode="bilinear", antialias=True), r"_upsample_bilinear2d_aa"),
        (lambda c, x: F.interpolate(x, size=(x.shape[2] + 1, x.shape[3])), r"upsample_nearest2d.*result's size"),
        (lambda c, x: torch.cat([x, x.mean((2, 3), keepdim=True).expand_as(x)], 1), r"aten\.expand_as.*broadcasts"),
        (lambda c, x: torch.cat([x, x], 2), r"aten\.cat.*channels"),
        (lambda c, x: x[:, :, : x.shape[2] // 2], r"aten\.slice.*range of pixels"),
        (lambda c, x: x[:1], r"aten\.slice.*dimension 0"),
        (lambda c, x: x.flatten(0, 1), r"aten\.flatten.*images of a batch"),
        (lambda c, x: x.mean(), r"aten\.mean\.default"),
        (lambda c, x: x.mean((0, 2, 3), keepdim=True), r"aten\.mean.*images of a batch"),
        (lambda c, x: x**3, r"aten\.pow.*exponent 3"),
        (lambda c, x: F.softplus(x, beta=2), r"aten\.softplus.*beta"),
        (lambda c, x: F.avg_pool2d(x, 2, divisor_override=3), r"aten\.avg_pool2d.*divisor_override"),
        (lambda c, x: F.pad(x, (0, 0, 0, 0, 1, 0)), r"aten\.(pad|constant_pad_nd).*height and width"),
        (lambda c, x: F.dropout(x, 0.5, True), r"aten\.dropout.*at random"),
        (lambda c, x: x + torch.randn(4, 1, 1), r"aten\.randn.*random numbers"),
        (lambda c, x: x + torch.randn_like(x), r"aten\.randn_like"),
        (lambda c, x: F.batch_norm(x, None, None, training=True), r"aten\.batch_norm.*statistics of the batch"),
        (lambda c, x: x + torch.linspace(0, 1, x.shape[3]), r"aten\.linspace.*follows the image's size"),
        (lambda c, x: x * x.shape[2], r"aten\.mul.*follows the image's size"),
        (lambda c, x: F.conv2d(x, x.mean((0, 2, 3)).view(1, 4, 1, 1)), r"aten\.(mean|conv2d)"),
        (lambda c, x: c(x).half().float(), r"aten\.to.*number type"),
        (lambda c, x: F.embedding(x.long()[:, 0, 0, 0], c.bias.view(4, 1)), r"aten\.to.*int64"),
        (write_into_view, r"aten\.relu_.*shares"),
        (pad_inside, r"1x4x17x17.*branches on the image's size"),
        (autocast, r"wrap_with_autocast.*outside the op vocabulary"),
        (lambda c, x: c(x) if x.shape[2] > 16 else x, r"other operations at another image size"),
        (lambda c, x: c(x) - x if x.shape[2] > 16 else x - c(x), r"other operations at another image size"),
        (lambda c, x: c(x) * (2 if x.shape[2] > 20 else 1), r"other operations|follows the image|branches"),
        (lambda c, x: c(x) if x.mean() > 0 else x, r"torch\.export can't capture.*data-dependent"),
        (lambda c, x: (x - 2).log(), r"non-finite"),
        (lambda c, x: c(x.repeat(1, 2, 1, 1)), r"can't run an input of 1x4x16x16: RuntimeError"),
        (lambda c, x: [x, None], r"something else than tensors"),
    ],
)
def test_what_the_graph_cannot_say_is_refused_by_name(
    function: Forward, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        from_module(Wrapped(function), torch.rand(1, 4, 16, 16))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_refusal_says_where_in_the_module() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ModuleDict({"inner": nn.Softmax(1)})["inner"])
    with pytest.raises(ModelError, match=r"aten\.softmax\.int \(in module '1'"):
        from_module(module, torch.rand(1, 3, 8, 8))
    with pytest.raises(ModelError, match=r"test_capture\.py:\d+"):
        from_module(Wrapped(lambda conv, x: conv(x).softmax(1)), torch.rand(1, 4, 8, 8))


def test_an_example_is_needed() -> None:
    with pytest.raises(ModelError, match="example"):
        from_module(nn.Conv2d(3, 3, 1))


def test_importing_capture_does_not_import_onnx() -> None:
    code = "import sys, tilefuse.capture; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
