"""Small generators of every family, built by hand: the fixed counterpart of `networks.random_network`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks import Dense, SqueezeExcite
from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.edsr import EDSR
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.export.generators.span import SPAN
from tilefuse.export.generators.srresnet import MSRResNet, SRResNet

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "espcn": (lambda: ESPCN(3, features=(8, 4)), (1, 3, 9, 8)),
    "espcn-residual": (lambda: ESPCN(2, features=(8, 4), residual=True), (1, 3, 9, 8)),
    "compact": (lambda: SRVGGNetCompact(num_feat=8, num_conv=3), (1, 3, 9, 8)),
    "rrdbnet": (lambda: RRDBNet(num_feat=8, num_block=2, num_grow_ch=4), (1, 3, 9, 8)),
    "rrdbnet-unshuffle": (lambda: RRDBNet(num_feat=8, num_block=1, num_grow_ch=4, unshuffle=2), (1, 3, 10, 8)),
    "edsr": (lambda: EDSR(num_feat=8, num_block=2, res_scale=0.1), (1, 3, 9, 8)),
    "msrresnet": (lambda: MSRResNet(num_feat=8, num_block=2), (1, 3, 9, 8)),
    "srresnet": (lambda: SRResNet(channels=8, num_block=2, bounded=True), (1, 3, 9, 8)),
    "fsrcnn": (lambda: FSRCNN(3, d=8, s=4, m=2), (1, 1, 9, 8)),
    "span": (lambda: SPAN(feature_channels=8, upscale=2), (1, 3, 9, 8)),
    "unet": (lambda: OddUNet(), (2, 3, 16, 16)),
    "dcgan": (lambda: DCGAN(), (2, 5)),
    "dcgan-1x1": (lambda: ConvolutionalDCGAN(), (2, 5, 1, 1)),
    "style": (lambda: StyleNetwork(), (1, 3, 16, 20)),
    "squeeze-excite": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), SqueezeExcite(4, True), SqueezeExcite(4, False)),
        (1, 3, 9, 8),
    ),
    "weight-norm": (lambda: Normed(), (1, 3, 9, 8)),
    "shared": (lambda: Shared(), (1, 3, 9, 8)),
    "dense": (lambda: nn.Sequential(dense(), dense()), (1, 4, 9, 8)),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Make a model of the table with seeded weights and statistics, in eval mode, and an example of its input."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    module = make().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.2)
    return module, torch.rand(shape)


def dense() -> Dense:
    return Dense([nn.Conv2d(4 + 2 * i, 2, 3, padding=1) for i in range(3)], nn.Conv2d(10, 4, 3, padding=1), 0.2)


class OddUNet(nn.Module):
    """A U-Net that resizes to the size of the skip, so that it takes any size."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(4 * 2**i, 8 * 2**i, 3, 2, 1) for i in range(2))
        self.up = nn.ModuleList(nn.Conv2d(12 * 2**i, 4 * 2**i, 3, padding=1) for i in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 * 2**i) for i in range(2))
        self.leave = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.enter(x))
        skips = []
        for conv, norm in zip(self.down, self.norms, strict=True):
            skips.append(y)
            y = F.relu(norm(conv(y)), inplace=True)
        for conv, skip in zip(reversed(self.up), reversed(skips), strict=True):
            y = F.interpolate(y, size=skip.shape[2:], mode="bilinear", align_corners=False)
            y = F.silu(conv(torch.cat([skip, y], 1)))
        return torch.sigmoid(self.leave(y))


class DCGAN(nn.Module):
    """A latent through a linear layer, reshaped, through transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(5, 8 * 4 * 4)
        self.norm = nn.BatchNorm1d(8 * 4 * 4)
        self.body = nn.Sequential(
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 4, 4, 2, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(True),
            nn.ConvTranspose2d(4, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.body(F.relu(self.norm(self.project(z))).view(z.shape[0], 8, 4, 4))


class ConvolutionalDCGAN(nn.Module):
    """A latent of 1x1 pixels through transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ConvTranspose2d(5, 8, 4, 1, 0, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 1, 4, 2, 1, groups=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z)


class StyleNetwork(nn.Module):
    """Reflection padding, instance norms, strided convolutions, nearest enlargement (Johnson et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(4),
            nn.Conv2d(3, 4, 9),
            nn.InstanceNorm2d(4, affine=True),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, 2, 1, padding_mode="reflect"),
            nn.InstanceNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(8, 3, 3, padding=1, padding_mode="replicate"),
        )

    def forward(self, x: Tensor) -> Tensor:
        return (torch.tanh(self.body(x)) + 1) / 2 * 255


class Normed(nn.Module):
    """Weights computed from parameters: weight norm, spectral norm, and a gain."""

    def __init__(self) -> None:
        super().__init__()
        self.weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.gain = nn.Parameter(torch.tensor([0.3]))
        self.register_buffer("offset", torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.weighted((x - self.offset) * 2)
        return y + self.spectral(y) * torch.exp(self.gain) * torch.tensor(0.5)


class Shared(nn.Module):
    """One convolution used twice, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.body, self.twin = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.twin.weight = self.body.weight
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        return self.twin(self.norm(self.body(self.norm(self.body(y)))))
