"""PGGAN, as it is used once grown: pixel norm, nearest enlargement and plain convolutions."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.export.descriptor import Architecture, Descriptor, Hints, MisfitError, Tensors, count_of, shape_of

SLOPE = 0.2
RANGE = (-1.0, 1.0)


def pixel_norm(x: Tensor) -> Tensor:
    """Scales the channel vector of each pixel of [N, C, H, W] to unit mean square."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class Block(nn.Module):
    """Enlarges twofold by repetition, then two 3x3 convolutions, leaky ReLU and pixel norm after each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2: nn.Module = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges a batch."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = pixel_norm(F.leaky_relu(self.conv1(x), SLOPE))
        return pixel_norm(F.leaky_relu(self.conv2(x), SLOPE))


class PGGAN(nn.Module):
    """Draws [N, channels, 4*2**(len(widths)-1), same] about -1..1 from latents [N, latent, 1, 1].

    `widths` are the channels at 4x4, 8x8 and so on. The output is linear and has to be clipped.

    Source: Karras et al., "Progressive Growing of GANs for Improved Quality, Stability, and Variation", ICLR 2018, with
    the equalised learning rate multiplied into the weights and the faded-out layers left away.
    """

    def __init__(self, latent: int = 64, widths: tuple[int, ...] = (64, 64, 32, 16), channels: int = 3) -> None:
        super().__init__()
        self.latent_shape = (latent, 1, 1)
        self.initial = nn.ConvTranspose2d(latent, widths[0], 4)
        self.conv = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in itertools.pairwise(widths))
        self.to_rgb = nn.Conv2d(widths[-1], channels, 1)

    def forward(self, latent: Tensor) -> Tensor:
        """Draws one image a latent."""
        x = pixel_norm(F.leaky_relu(self.initial(pixel_norm(latent)), SLOPE))
        x = pixel_norm(F.leaky_relu(self.conv(x), SLOPE))
        for block in self.blocks:
            x = block(x)
        image: Tensor = self.to_rgb(x)
        return image


def _detect(tensors: Tensors) -> bool:
    return {"initial.weight", "conv.weight", "to_rgb.weight"} <= tensors.keys()


def _describe(tensors: Tensors, _hints: Hints) -> Descriptor:
    latent, first = shape_of(tensors, "initial.weight")[:2]
    blocks = count_of(tensors, "blocks.")
    if blocks > 8:
        raise MisfitError(f"{blocks} doublings, expected 8 at most")
    widths = (first, *(shape_of(tensors, f"blocks.{index}.conv1.weight")[0] for index in range(blocks)))
    channels = shape_of(tensors, "to_rgb.weight")[0]
    return Descriptor(
        "PGGAN",
        {"latent": latent, "widths": widths, "channels": channels},
        scale=1,
        in_channels=latent,
        out_channels=channels,
        tags=("-".join(map(str, widths)), f"{4 * 2**blocks}px"),
        value_range=RANGE,
        latent=latent,
        inputs={"latent": (latent, 1, 1)},
    )


ARCHITECTURE = Architecture("PGGAN", PGGAN, _detect, _describe, example={"latent": 1, "widths": (1, 1)})
