"""The nets and sizes that speed is claimed for: what the README's comparison with other libraries is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilefuse.export.checkpoints import load_bundled
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.sample import sample_picture


class StyleNetwork(nn.Module):
    """A feed-forward style network: [N, 3, H, W] -> the same shape, in 0..1.

    Source: Johnson, Alahi and Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV
    2016, with instance norm (Ulyanov, Vedaldi and Lempitsky, 2016), nearest enlargement, and a sigmoid at the end.
    """

    def __init__(self, width: int = 32, blocks: int = 5) -> None:
        super().__init__()
        layers = [*_normed(3, width, 9), *_normed(width, 2 * width, 3, 2), *_normed(2 * width, 4 * width, 3, 2)]
        layers += [_Residual(4 * width) for _ in range(blocks)]
        for size in (4 * width, 2 * width):
            layers += [nn.Upsample(scale_factor=2), *_normed(size, size // 2, 3)]
        self.body = nn.Sequential(*layers, nn.ReflectionPad2d(4), nn.Conv2d(width, 3, 9), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Restyle a batch whose sides are multiples of 4."""
        output: Tensor = self.body(x)
        return output


class _Residual(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_normed(features, features, 3), *_normed(features, features, 3)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


def _normed(before: int, after: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.ReflectionPad2d(kernel // 2),
        nn.Conv2d(before, after, kernel, stride),
        nn.InstanceNorm2d(after, affine=True),
        nn.ReLU(),
    ]


@dataclass(frozen=True)
class Case:
    """A net at a size: an image of `size` (width, height) with `channels`, or `batch` latents [latent] without a size.

    `build` makes the module as its author would publish it, in eval mode. `value_range` is what black and white are.
    """

    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, int] | None
    channels: int = 3
    batch: int = 1
    latent: tuple[int, ...] = ()
    value_range: tuple[float, float] = (0.0, 1.0)
    bundled: str | None = None

    @property
    def shown(self) -> str:
        """Size for people."""
        return f"batch {self.batch}" if self.size is None else f"{self.size[0]}x{self.size[1]}"

    def image(self) -> NDArray[np.uint8]:
        """Draw the 8-bit image: [H, W, C], or [H, W] for one channel."""
        width, height = self.size or (1, 1)
        picture = sample_picture(height, width, self.channels)
        return picture[..., 0] if self.channels == 1 else picture

    def tensor(self, image: NDArray[Any] | None = None) -> Tensor:
        """Give the network's input as a user makes it: an image in 0..1, or standard normal latents."""
        if self.size is None:
            return torch.randn(self.batch, *self.latent, generator=torch.Generator().manual_seed(0))
        given = torch.from_numpy(self.image() if image is None else image)
        planes = given[None] if given.ndim == 2 else given.permute(2, 0, 1)
        return planes[None].float().div_(255)


def _bundled(name: str) -> Callable[[], nn.Module]:
    return lambda: load_bundled(name)[0].eval()


def _seeded(make: Callable[[], nn.Module], last: Callable[[Any], Any]) -> Callable[[], nn.Module]:
    """Build with seeded random weights, the last layer scaled so that results span the range of an image.

    Left as they are drawn, they give one gray, and a comparison in 8 bits would see nothing.
    """

    def build() -> nn.Module:
        torch.manual_seed(0)
        module: Any = make().eval()
        picture = sample_picture(24, 24, 1 if isinstance(module, FSRCNN) else 3)
        with torch.no_grad():
            layer = last(module)
            result = module(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)
            gain = 0.2 / result.std()
            layer.weight *= gain
            layer.bias.copy_(layer.bias * gain + 0.5 - gain * result.mean())
        return module  # type: ignore[no-any-return]

    return build


def _style() -> nn.Module:
    torch.manual_seed(0)
    return StyleNetwork().eval()


_RRDB = _seeded(lambda: RRDBNet(num_block=6), lambda net: net.conv_last)
_FSRCNN = _seeded(lambda: FSRCNN(2), lambda net: net.last_part)

CASES: tuple[Case, ...] = (
    Case("espcn-x2", _bundled("espcn-x2"), (480, 270), bundled="espcn-x2"),
    Case("compact-x4", _bundled("compact-x4"), (320, 180), bundled="compact-x4"),
    Case("fsrcnn-x2", _FSRCNN, (960, 540), channels=1),
    Case(
        "dcgan-textures",
        _bundled("dcgan-textures"),
        None,
        batch=64,
        latent=(100, 1, 1),
        value_range=(-1, 1),
        bundled="dcgan-textures",
    ),
    Case("style", _style, (640, 360)),
    Case("espcn-x4", _bundled("espcn-x4"), (1920, 1080), bundled="espcn-x4"),
    Case("compact-x4", _bundled("compact-x4"), (960, 540), bundled="compact-x4"),
    Case("rrdb-6", _RRDB, (256, 256)),
)
