"""GAN: the fully connected generator and discriminator."""

import itertools
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.export.descriptor import Architecture, Descriptor, Hints, MisfitError, Tensors, count_of, shape_of

SLOPE = 0.2


class GAN(nn.Module):
    """Draws [N, channels, size, size] in 0..1 from latents [N, latent] with fully connected layers.

    Leaky ReLU of slope 0.2 between them, sigmoid at the end.

    Source: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014.
    """

    def __init__(
        self, latent: int = 64, hidden: tuple[int, ...] = (128, 128), channels: int = 1, size: int = 28
    ) -> None:
        super().__init__()
        self.latent_shape = (latent,)
        self.image = (channels, size, size)
        widths = (latent, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.output = nn.Linear(widths[-1], channels * size * size)

    def forward(self, latent: Tensor) -> Tensor:
        """Draws one image a latent."""
        for layer in self.hidden:
            latent = F.leaky_relu(layer(latent), SLOPE)
        return torch.sigmoid(self.output(latent)).reshape(-1, *self.image)


class GANDiscriminator(nn.Module):
    """Scores images [N, channels, size, size] as logits [N], positive for real."""

    def __init__(self, channels: int = 1, size: int = 28, hidden: tuple[int, ...] = (256, 128)) -> None:
        super().__init__()
        widths = (channels * size * size, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.output = nn.Linear(widths[-1], 1)

    def forward(self, image: Tensor) -> Tensor:
        """Scores a batch."""
        features = image.flatten(1)
        for layer in self.hidden:
            features = F.leaky_relu(layer(features), SLOPE)
        score: Tensor = self.output(features)
        return score.squeeze(1)


def square_of(total: int) -> tuple[int, int]:
    """Splits the number of values of an image into (channels, size), for a square image of 1 or 3 channels."""
    for channels in (1, 3):
        size = isqrt(total // channels)
        if size >= 1 and channels * size * size == total:
            return channels, size
    raise MisfitError(f"{total} output values are no square image of 1 or 3 channels")


def _detect(tensors: Tensors) -> bool:
    return {"hidden.0.weight", "output.weight"} <= tensors.keys()


def _describe(tensors: Tensors, _hints: Hints) -> Descriptor:
    hidden = tuple(shape_of(tensors, f"hidden.{i}.weight", 2)[0] for i in range(count_of(tensors, "hidden.")))
    latent = shape_of(tensors, "hidden.0.weight", 2)[1]
    channels, size = square_of(shape_of(tensors, "output.weight", 2)[0])
    return Descriptor(
        "GAN",
        {"latent": latent, "hidden": hidden, "channels": channels, "size": size},
        scale=1,
        in_channels=latent,
        out_channels=channels,
        tags=("-".join(map(str, hidden)), f"{size}px"),
        latent=latent,
        inputs={"latent": (latent,)},
    )


ARCHITECTURE = Architecture("GAN", GAN, _detect, _describe, example={"latent": 1, "hidden": (1,), "size": 1})
