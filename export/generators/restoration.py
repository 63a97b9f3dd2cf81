"""Encoder-decoder restoration: denoising of an image, or filling of its holes where a mask says."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.export.descriptor import (
    MAX_BLOCKS,
    Architecture,
    Descriptor,
    Hints,
    MisfitError,
    Tensors,
    count_of,
    shape_of,
)

COLOURS = 3
MASKED = COLOURS + 1
LARGEST_DILATION = 64
PYRAMID_LEVELS = 5
LEAST_KNOWN = 1e-3


class ResidualBlock(nn.Module):
    """Adds two 3x3 convolutions, `dilation` apart, with ReLU between to [N, width, H, W]."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Gives the sum."""
        change: Tensor = self.conv2(torch.relu(self.conv1(x)))
        return x + change


class Down(nn.Module):
    """Refines [N, width, H, W] and halves it: `block` gives the skip, `strided` what goes on."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.block = ResidualBlock(width)
        self.strided = nn.Conv2d(width, wider, 2, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gives the skip and what goes on."""
        skip = self.block(x)
        return skip, self.strided(skip)


class Up(nn.Module):
    """Doubles [N, wider, H, W], adds the skip and refines the sum."""

    def __init__(self, wider: int, width: int) -> None:
        super().__init__()
        self.transposed = nn.ConvTranspose2d(wider, width, 2, stride=2)
        self.block = ResidualBlock(width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Gives the refined sum."""
        result: Tensor = self.block(self.transposed(x) + skip)
        return result


class RestorationNet(nn.Module):
    """Restores images [N, in_channels, H, W] in 0..1 to [N, 3, H, W]; H and W are multiples of 2**(len(widths) - 1).

    With 3 channels in, the image is noisy and the network estimates the noise. With 4, the fourth is a mask, 1 where
    the image has a hole: what stands in holes is not looked at, and where the mask is 0 the image is given back as it
    is. Then H and W are multiples of 2**PYRAMID_LEVELS too, and the network adds to an interpolation. `widths` are the
    channels from full resolution down, each level half as large; the lowest has one residual block for each of
    `dilations`.

    Source: Ronneberger et al., "U-Net", MICCAI 2015; Zhang et al., "Plug-and-Play Image Restoration with Deep Denoiser
    Prior", TPAMI 2021 (strided and transposed 2x2 convolutions, added skips).
    """

    def __init__(
        self,
        in_channels: int = 3,
        widths: tuple[int, ...] = (24, 48, 80),
        dilations: tuple[int, ...] = (1, 1),
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.head = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Down(width, wider) for width, wider in pairs)
        self.body = nn.ModuleList(ResidualBlock(widths[-1], dilation) for dilation in dilations)
        self.up = nn.ModuleList(Up(wider, width) for width, wider in reversed(pairs))
        self.tail = nn.Conv2d(widths[0], COLOURS, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Restores a batch."""
        if self.head.in_channels == COLOURS:
            return image - self._estimate(image - 0.5)
        mask = image[:, COLOURS:]
        known = 1.0 - mask
        seen = image[:, :COLOURS] * known
        # Holes start as what surrounds them, so that the network is left with the edges and textures.
        filled = interpolate(seen, known)
        return seen + mask * (filled + self._estimate(torch.cat([filled - 0.5, mask], 1)))

    def _estimate(self, image: Tensor) -> Tensor:
        x = self.head(image)
        skips = []
        for down in self.down:
            skip, x = down(x)
            skips.append(skip)
        for block in self.body:
            x = block(x)
        for up in self.up:
            x = up(x, skips.pop())
        result: Tensor = self.tail(x)
        return result


def interpolate(seen: Tensor, known: Tensor) -> Tensor:
    """Fills images [N, 3, H, W], 0 where `known` [N, 1, H, W] is 0, from a pyramid of their known pixels' averages.

    H and W are multiples of 2**PYRAMID_LEVELS.

    Source: Gortler et al., "The Lumigraph", SIGGRAPH 1996 (push-pull, here without saturating the weights).
    """
    levels = [(seen, known)]
    for _ in range(PYRAMID_LEVELS):
        seen, known = F.avg_pool2d(seen, 2), F.avg_pool2d(known, 2)
        levels.append((seen, known))
    # Where nothing at all is known, mid-gray.
    x = (seen + 0.5 * LEAST_KNOWN) / (known + LEAST_KNOWN)
    for seen, known in reversed(levels[:-1]):
        x = seen + (1.0 - known) * F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    return x


def _detect(tensors: Tensors) -> bool:
    return {"head.weight", "tail.weight", "down.0.strided.weight", "up.0.transposed.weight"} <= tensors.keys()


def _describe(tensors: Tensors, hints: Hints) -> Descriptor:
    first, in_channels, *_ = shape_of(tensors, "head.weight")
    if in_channels not in (COLOURS, MASKED):
        raise MisfitError(f"head.weight takes {in_channels} channels, expected {COLOURS}, or {MASKED} with a mask")
    levels = count_of(tensors, "down.")
    widths = (first, *(shape_of(tensors, f"down.{level}.strided.weight")[0] for level in range(levels)))
    blocks = count_of(tensors, "body.")
    return Descriptor(
        "RestorationNet",
        {
            "in_channels": in_channels,
            "widths": widths,
            "dilations": _dilations(hints, blocks),
        },
        scale=1,
        in_channels=in_channels,
        out_channels=COLOURS,
        tags=("-".join(str(width) for width in widths) + "nf", "inpainting" if in_channels == MASKED else "denoising"),
    )


def _dilations(hints: Hints, blocks: int) -> tuple[int, ...]:
    """Takes the dilations, which no shape tells, from the file's metadata; without any they are 1."""
    value = hints.get("dilations", (1,) * blocks)
    numbers = value if isinstance(value, list | tuple) and blocks <= MAX_BLOCKS else ()
    if len(numbers) != blocks or not all(type(n) is int and 1 <= n <= LARGEST_DILATION for n in numbers):
        raise MisfitError(
            f"the dilations are {value!r:.80}, expected {blocks} whole numbers of 1 to {LARGEST_DILATION}"
        )
    return tuple(numbers)


ARCHITECTURE = Architecture(
    "RestorationNet", RestorationNet, _detect, _describe, example={"widths": (1, 1), "dilations": (1,)}
)
