"""The generator families against the networks as published, and through torch.export with dynamic sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import Compare
from tests.published import (
    Conv3XC,
    NumberedSRResNet,
    OldRRDBNet,
    OriginalEDSR,
    PublishedESPCN,
    PublishedFSRCNN,
    PublishedSPAN,
    randomized,
)
from tilefuse.export.architectures import build, infer
from tilefuse.export.descriptor import MisfitError
from tilefuse.export.generators.edsr import EDSR
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.export.generators.span import SPAN, fold
from tilefuse.export.generators.srresnet import MSRResNet, SRResNet

PUBLISHED = [
    ("RRDB old x4", OldRRDBNet(3, 4, 2, 3, 2), ""),
    ("RRDB old x1", OldRRDBNet(3, 4, 1, 2, 0), ""),
    ("RRDB old x2", OldRRDBNet(1, 3, 3, 2, 1), ""),
    ("RRDB old x8", OldRRDBNet(4, 2, 1, 1, 3), ""),
    ("RRDB gray to colour", OldRRDBNet(1, 2, 1, 1, 1, outputs=3), ""),
    ("EDSR x2", OriginalEDSR(4, 2, [2]), ""),
    ("EDSR x3 in 0..1", OriginalEDSR(3, 1, [3], value_range=1.0), ""),
    ("EDSR x4, 16 bit", OriginalEDSR(2, 3, [2, 2], value_range=65535.0), ""),
    ("EDSR wide", OriginalEDSR(256, 1, [2], res_scale=0.1), ""),
    ("SRResNet numbered x4", NumberedSRResNet(4, 5, 2), ""),
    ("SRResNet numbered x2", NumberedSRResNet(2, 1, 1), ""),
    ("SPAN x4", PublishedSPAN(6, 4), ""),
    ("SPAN x2 without mean, gray", PublishedSPAN(4, 2, channels=1, norm=False), ""),
    ("SPAN of gain 1", PublishedSPAN(3, 1, gain=1), ""),
    ("ESPCN yjn870", PublishedESPCN(1, 8, 4, 3, names=("first_part", "last_part")), ""),
    ("ESPCN Lornatang", PublishedESPCN(3, 4, 3, 2, names=("feature_maps", "sub_pixel")), ""),
    ("FSRCNN Lornatang", PublishedFSRCNN(5, 3, 2, 3), "fsrcnn_x3"),
    ("FSRCNN without mapping", PublishedFSRCNN(2, 1, 0, 2), "fsrcnn-x2"),
]


def _input(module: nn.Module, channels: int, size: tuple[int, int] = (5, 7)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, channels, *size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("published", "name"), [row[1:] for row in PUBLISHED], ids=[row[0] for row in PUBLISHED])
def test_loaded_network_equals_the_published_one(published: nn.Module, name: str, assert_close: Compare) -> None:
    published = randomized(published).double()
    weights = published.state_dict()
    descriptor = infer(weights, name=name)
    loaded = build(descriptor, weights).double()
    for size in [(1, 1), (2, 3), (5, 7)]:
        x = _input(loaded, descriptor.in_channels, size)
        expected = published(x)
        assert expected.shape[1:] == (descriptor.out_channels, *(descriptor.scale * edge for edge in size))
        # The mean colour and SPAN's scale of 255 are the single-precision constants of the published code.
        assert_close(loaded(x), expected, max_abs=2e-7 * max(1.0, expected.abs().max().item()), what=str(size))


def _unshuffled(scale: int) -> tuple[nn.Module, nn.Module]:
    factor = {2: 2, 1: 4}[scale]
    old = randomized(OldRRDBNet(3 * factor**2, 3, 1, 2, 2, outputs=3))
    return nn.Sequential(nn.PixelUnshuffle(factor), old), old


@pytest.mark.parametrize("scale", [1, 2])
def test_rrdbnet_unshuffles_where_the_first_layer_says_so(scale: int, assert_close: Compare) -> None:
    published, old = _unshuffled(scale)
    weights = old.state_dict()
    descriptor = infer(weights)
    assert (descriptor.scale, descriptor.in_channels, descriptor.out_channels) == (scale, 3, 3)
    x = _input(published, 3, (8, 12)).float()
    assert_close(build(descriptor, weights)(x), published(x), max_abs=1e-6)


def test_fold_equals_the_branches_even_at_the_border(assert_close: Compare) -> None:
    for inputs, outputs, gain in [(3, 5, 2), (4, 4, 2), (1, 2, 3), (2, 1, 1)]:
        branches = randomized(Conv3XC(inputs, outputs, gain), seed=gain)
        for dtype, bound in [(torch.float64, 1e-14), (torch.float32, 2e-6)]:
            branches.to(dtype)
            weight, bias = fold({f"c.{key}": value for key, value in branches.state_dict().items()}, "c")
            assert weight.dtype == dtype
            x = torch.rand(2, inputs, 4, 3, dtype=dtype)
            assert_close(F.conv2d(x, weight, bias, padding=1), branches(x), max_abs=bound, what=f"{dtype}")


def test_span_ignores_a_stale_evaluation_kernel_but_takes_it_where_it_is_alone(assert_close: Compare) -> None:
    published = randomized(PublishedSPAN(3, 2))
    full = published.state_dict()
    loaded = build(infer(full), full)
    plain = {
        key.replace(".weight", ".eval_conv.weight").replace(".bias", ".eval_conv.bias"): value
        for key, value in loaded.state_dict().items()
    }
    plain = {key.replace("conv_cat.eval_conv", "conv_cat").replace("0.eval_conv", "0"): v for key, v in plain.items()}
    x = _input(loaded, 3).float()
    assert_close(build(infer(plain), plain)(x), loaded(x), max_abs=0.0)


def test_fold_refuses_branches_of_other_shapes() -> None:
    weights = {f"c.{key}": value for key, value in Conv3XC(2, 2, 2).state_dict().items()}
    with pytest.raises(MisfitError, match=r"c\.conv\.1"):
        fold(weights | {"c.conv.1.weight": torch.zeros(4, 4, 5, 5)}, "c")


MODULES = [
    (RRDBNet(num_feat=4, num_block=1, num_grow_ch=2), 1, 4),
    (RRDBNet(num_feat=4, num_block=1, num_grow_ch=2, unshuffle=2), 2, 2),
    (MSRResNet(num_feat=4, num_block=1, upscale=4), 1, 4),
    (MSRResNet(num_feat=4, num_block=1, upscale=3), 1, 3),
    (SRResNet(channels=4, num_block=1, num_upsample=2), 1, 4),
    (SRResNet(channels=4, num_block=1, num_upsample=1, bias=True, bounded=True), 1, 2),
    (EDSR(num_feat=4, num_block=1, upscale=8), 1, 8),
    (EDSR(num_feat=4, num_block=1, upscale=1, res_scale=0.1), 1, 1),
    (FSRCNN(scale=3, channels=3, d=4, s=2, m=1), 1, 3),
    (FSRCNN(scale=1, channels=3, d=4, s=2, m=1), 1, 1),
    (SPAN(feature_channels=4, upscale=2), 1, 2),
    (SPAN(feature_channels=4, upscale=4, norm=False), 1, 4),
]


@pytest.mark.parametrize(("module", "step", "scale"), MODULES, ids=lambda value: type(value).__name__)
def test_exports_with_dynamic_height_and_width(module: nn.Module, step: int, scale: int, assert_close: Compare) -> None:
    module = randomized(module)
    sizes = (
        {2: step * torch.export.Dim("h"), 3: step * torch.export.Dim("w")}
        if step > 1
        else {2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    )
    exported = torch.export.export(module, (torch.rand(2, 3, 8 * step, 6 * step),), dynamic_shapes=(sizes,)).module()
    for size in [(2, 3), (17, 5)]:
        x = torch.rand(2, 3, *(step * edge for edge in size))
        y = module(x)
        assert y.shape[2:] == (scale * x.shape[2], scale * x.shape[3])
        assert_close(exported(x), y, max_abs=1e-5 * max(1.0, y.abs().max().item()), what=f"{size}")


def test_srresnet_adds_a_bilinear_base_without_weights(assert_close: Compare) -> None:
    module = MSRResNet(num_feat=2, num_block=1, upscale=2).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    x = torch.tensor([[[[0.0, 1.0]] * 2] * 3])
    row = torch.tensor([0.0, 0.25, 0.75, 1.0])
    assert_close(module(x), row.expand(1, 3, 4, 4), max_abs=0.0)
