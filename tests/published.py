"""Networks as their authors published them, in the authors' key naming: what checkpoints in the wild come from.

Each is written here a second time, by layers of torch alone, so that a loaded network can be compared with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every weight and statistic of a module, mean shifts apart, with small reproducible numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point() or "_mean." in name.replace("running_mean", ""):
                continue
            values = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
            tensor.copy_(values + 1.0 if name.endswith("running_var") else values * 0.6)
    return module.eval()


class OldDenseBlock(nn.Module):
    """A residual dense block of the first ESRGAN: every convolution in a Sequential of its own."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for i in range(1, 6):
            conv = nn.Conv2d(features + (i - 1) * growth, growth if i < 5 else features, 3, padding=1)
            self.add_module(f"conv{i}", nn.Sequential(conv, *([nn.LeakyReLU(0.2)] if i < 5 else [])))

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for i in range(1, 5):
            seen = torch.cat([seen, self.get_submodule(f"conv{i}")(seen)], 1)
        return self.get_submodule("conv5")(seen) * 0.2 + x


class OldRRDB(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = (OldDenseBlock(features, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.RDB3(self.RDB2(self.RDB1(x))) * 0.2 + x


class Shortcut(nn.Module):
    def __init__(self, sub: nn.Module) -> None:
        super().__init__()
        self.sub = sub

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sub(x)


class OldRRDBNet(nn.Module):
    """The first ESRGAN: `model.0`, `model.1.sub.0.RDB1.conv1.0`, `model.3`, ..."""

    def __init__(
        self, channels: int, features: int, blocks: int, growth: int, stages: int, *, outputs: int | None = None
    ) -> None:
        super().__init__()
        outputs = outputs or channels
        trunk = [OldRRDB(features, growth) for _ in range(blocks)]
        layers: list[nn.Module] = [
            nn.Conv2d(channels, features, 3, padding=1),
            Shortcut(nn.Sequential(*trunk, nn.Conv2d(features, features, 3, padding=1))),
        ]
        for _ in range(stages):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(features, features, 3, padding=1), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(features, features, 3, padding=1), nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*layers, nn.Conv2d(features, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class MeanShift(nn.Conv2d):
    def __init__(self, value_range: float, sign: int) -> None:
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).reshape(3, 3, 1, 1)
        self.bias.data = sign * value_range * torch.tensor([0.4488, 0.4371, 0.4040])


class EDSRBlock(nn.Module):
    def __init__(self, features: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1), nn.ReLU(), nn.Conv2d(features, features, 3, padding=1)
        )
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) * self.res_scale


class OriginalEDSR(nn.Module):
    """EDSR as its authors keep it: `head`, `body`, `tail`, with images in 0..value_range."""

    def __init__(
        self, features: int, blocks: int, factors: list[int], *, value_range: float = 255.0, res_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.value_range = value_range
        self.sub_mean, self.add_mean = MeanShift(value_range, -1), MeanShift(value_range, 1)
        self.head = nn.Sequential(nn.Conv2d(3, features, 3, padding=1))
        last = nn.Conv2d(features, features, 3, padding=1)
        self.body = nn.Sequential(*(EDSRBlock(features, res_scale) for _ in range(blocks)), last)
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [nn.Conv2d(features, features * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        self.tail = nn.Sequential(nn.Sequential(*layers), nn.Conv2d(features, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(self.sub_mean(x * self.value_range))
        return self.add_mean(self.tail(shallow + self.body(shallow))) / self.value_range


class NumberedResidual(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features)
        self.prelu = nn.PReLU()
        self.conv2, self.bn2 = nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))


class NumberedUpsample(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv, self.prelu = nn.Conv2d(features, features * 4, 3, padding=1), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(F.pixel_shuffle(self.conv(x), 2))


class NumberedSRResNet(nn.Module):
    """The SRGAN generator of leftthomas/SRGAN: `block1` to `block8` where it has five residual blocks."""

    def __init__(self, features: int, blocks: int, stages: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.block1 = nn.Sequential(nn.Conv2d(3, features, 9, padding=4), nn.PReLU())
        for block in range(blocks):
            self.add_module(f"block{block + 2}", NumberedResidual(features))
        tail = nn.Sequential(nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features))
        self.add_module(f"block{blocks + 2}", tail)
        upsampling = [NumberedUpsample(features) for _ in range(stages)]
        self.add_module(f"block{blocks + 3}", nn.Sequential(*upsampling, nn.Conv2d(features, 3, 9, padding=4)))

    def forward(self, x: Tensor) -> Tensor:
        shallow = features = self.block1(x)
        for block in range(2, self.blocks + 3):
            features = self.get_submodule(f"block{block}")(features)
        return (torch.tanh(self.get_submodule(f"block{self.blocks + 3}")(shallow + features)) + 1) / 2


class Conv3XC(nn.Module):
    """SPAN's re-parameterised convolution, evaluated as it trains: branch by branch."""

    def __init__(self, inputs: int, outputs: int, gain: int) -> None:
        super().__init__()
        self.sk = nn.Conv2d(inputs, outputs, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inputs * gain, 1),
            nn.Conv2d(inputs * gain, outputs * gain, 3),
            nn.Conv2d(outputs * gain, outputs, 1),
        )
        self.eval_conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x)


class PublishedSPAB(nn.Module):
    def __init__(self, features: int, gain: int) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (Conv3XC(features, features, gain) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The published activation works in place, so what is handed on of the first convolution is activated.
        first = F.silu(self.c1_r(x))
        last = self.c3_r(F.silu(self.c2_r(first)))
        return (last + x) * (torch.sigmoid(last) - 0.5), first


class PublishedSPAN(nn.Module):
    """SPAN with the branches of training in its state dict."""

    def __init__(self, features: int, scale: int, *, channels: int = 3, norm: bool = True, gain: int = 2) -> None:
        super().__init__()
        if not norm:
            self.register_buffer("no_norm", torch.zeros(1))
        self.norm = norm
        self.scale = scale
        self.conv_1 = Conv3XC(channels, features, gain)
        for block in range(1, 7):
            self.add_module(f"block_{block}", PublishedSPAB(features, gain))
        self.conv_cat = nn.Conv2d(4 * features, features, 1)
        self.conv_2 = Conv3XC(features, features, gain)
        self.upsampler = nn.Sequential(nn.Conv2d(features, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm:
            x = (x - torch.tensor([0.4488, 0.4371, 0.4040]).reshape(1, 3, 1, 1)) * 255.0
        shallow = features = self.conv_1(x)
        outputs = []
        for block in range(1, 7):
            features, inner = self.get_submodule(f"block_{block}")(features)
            outputs.append(features)
        cat = torch.cat([shallow, self.conv_2(features), outputs[0], inner], 1)
        return self.upsampler(self.conv_cat(cat))


class PublishedESPCN(nn.Module):
    """ESPCN in the naming of yjn870 (`first_part`, `last_part`) or Lornatang (`feature_maps`, `sub_pixel`)."""

    def __init__(self, channels: int, wide: int, narrow: int, scale: int, *, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        first = nn.Sequential(
            nn.Conv2d(channels, wide, 5, padding=2), nn.Tanh(), nn.Conv2d(wide, narrow, 3, padding=1), nn.Tanh()
        )
        last = nn.Sequential(nn.Conv2d(narrow, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.add_module(names[0], first)
        self.add_module(names[1], last)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.names[1])(self.get_submodule(self.names[0])(x))


class PublishedFSRCNN(nn.Module):
    """FSRCNN in the naming of Lornatang: `feature_extraction`, `shrink`, `map`, `expand`, `deconv`."""

    def __init__(self, d: int, s: int, m: int, scale: int) -> None:
        super().__init__()
        self.feature_extraction = nn.Sequential(nn.Conv2d(1, d, 5, padding=2), nn.PReLU(d))
        self.shrink = nn.Sequential(nn.Conv2d(d, s, 1), nn.PReLU(s))
        layers = [layer for _ in range(m) for layer in (nn.Conv2d(s, s, 3, padding=1), nn.PReLU(s))]
        self.map = nn.Sequential(*layers)
        self.expand = nn.Sequential(nn.Conv2d(s, d, 1), nn.PReLU(d))
        self.deconv = nn.ConvTranspose2d(d, 1, 9, scale, 4, scale - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.deconv(self.expand(self.map(self.shrink(self.feature_extraction(x)))))
