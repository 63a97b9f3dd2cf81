"""Convolutional autoencoder for compression: an encoder to latents that are rounded, and a decoder back to an image."""

import torch
from torch import Tensor, nn

from tilefuse.export.descriptor import Architecture, Descriptor, Hints, MisfitError, Tensors, shape_of
from tilefuse.export.generators.restoration import ResidualBlock

COLOURS = 3
REDUCTION = 8
STAGES = 3
# Latents of this many levels a unit of an orthonormal transform of 0..1: rounding then costs what 25/255 in it would.
GAIN = 10.0


class Encoder(nn.Module):
    """Turns images [N, 3, H, W] in 0..1 into latents [N, latents, H/8, W/8] to be rounded to whole numbers.

    The sum of a linear transform of blocks and of what convolutions see beyond it.
    """

    def __init__(self, widths: tuple[int, int, int], latents: int) -> None:
        super().__init__()
        inputs = (COLOURS, *widths[:-1])
        self.down = nn.ModuleList(
            nn.Conv2d(width, wider, 4, stride=2, padding=1) for width, wider in zip(inputs, widths, strict=True)
        )
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in widths)
        self.latents = nn.Conv2d(widths[-1], latents, 3, padding=1)
        self.transform = nn.Conv2d(COLOURS, latents, REDUCTION, stride=REDUCTION)

    def forward(self, image: Tensor) -> Tensor:
        """Gives the latents of a batch, not yet rounded."""
        x = centred = image - 0.5
        for down, block in zip(self.down, self.blocks, strict=True):
            x = block(torch.relu(down(x)))
        result: Tensor = GAIN * (self.transform(centred) + self.latents(x))
        return result


class Decoder(nn.Module):
    """Turns latents [N, latents, H/8, W/8] into images [N, 3, H, W]."""

    def __init__(self, widths: tuple[int, int, int], latents: int) -> None:
        super().__init__()
        outputs = (*widths[-2::-1], COLOURS)
        self.enter = nn.Conv2d(latents, widths[-1], 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in reversed(widths))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(wider, width, 4, stride=2, padding=1)
            for wider, width in zip(reversed(widths), outputs, strict=True)
        )
        self.inverse = nn.ConvTranspose2d(latents, COLOURS, REDUCTION, stride=REDUCTION)

    def forward(self, latents: Tensor) -> Tensor:
        """Gives the images of a batch."""
        latents = latents / GAIN
        x = self.enter(latents)
        for block, up in zip(self.blocks, self.up, strict=True):
            x = up(torch.relu(block(x)))
        result: Tensor = x + self.inverse(latents) + 0.5
        return result


class Autoencoder(nn.Module):
    """Encodes images [N, 3, H, W] in 0..1, H and W multiples of 8, and decodes them again.

    As a module it is the round trip without rounding the latents: rounding is a step, on which backends that differ in
    the last bit would differ by a whole one. `encoder` and `decoder` are modules of their own, to be captured apart.
    `widths` are the channels at half, quarter and eighth resolution. Encoder and decoder add their convolutions to a
    linear transform of 8x8 blocks, which training starts as a DCT.

    Source: Theis et al., "Lossy Image Compression with Compressive Autoencoders", ICLR 2017.
    """

    def __init__(self, widths: tuple[int, int, int] = (32, 48, 64), latents: int = 32) -> None:
        super().__init__()
        self.encoder = Encoder(widths, latents)
        self.decoder = Decoder(widths, latents)

    def forward(self, image: Tensor) -> Tensor:
        """Gives the images decoded again."""
        result: Tensor = self.decoder(self.encoder(image))
        return result


def _detect(tensors: Tensors) -> bool:
    return {"encoder.transform.weight", "encoder.down.0.weight", "decoder.inverse.weight"} <= tensors.keys()


def _describe(tensors: Tensors, _hints: Hints) -> Descriptor:
    widths = tuple(shape_of(tensors, f"encoder.down.{stage}.weight")[0] for stage in range(STAGES))
    latents = shape_of(tensors, "encoder.latents.weight")[0]
    colours = shape_of(tensors, "encoder.down.0.weight")[1]
    if colours != COLOURS:
        raise MisfitError(f"encoder.down.0.weight takes {colours} channels, expected {COLOURS}")
    return Descriptor(
        "Autoencoder",
        {"widths": widths, "latents": latents},
        scale=1,
        in_channels=COLOURS,
        out_channels=COLOURS,
        tags=("-".join(str(width) for width in widths) + "nf", f"{latents} latents"),
    )


ARCHITECTURE = Architecture("Autoencoder", Autoencoder, _detect, _describe, example={"widths": (1, 1, 1), "latents": 1})
