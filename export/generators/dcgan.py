"""DCGAN in both shapes in use: all transposed convolutions, and a linear layer before them."""

from math import isqrt

import torch
from torch import Tensor, nn

from tilefuse.export.descriptor import (
    MAX_BLOCKS,
    Architecture,
    Descriptor,
    Hints,
    MisfitError,
    Tensors,
    indices_of,
    shape_of,
)

RANGE = (-1.0, 1.0)


class DCGAN(nn.Module):
    """Draws [N, channels, 4*2**doublings, same] in -1..1 from latents [N, latent, 1, 1].

    A 4x4 transposed convolution, then `doublings` of stride 2; batch norm and ReLU between them, tanh at the end. The
    widths halve from `features * 2**(doublings - 1)` to `features`. The keys (`main.0.weight`) are those of the PyTorch
    examples' netG, whose 64x64 network is `features=64, doublings=4`.

    Source: Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
    Adversarial Networks", ICLR 2016.
    """

    def __init__(self, latent: int = 100, features: int = 64, channels: int = 3, doublings: int = 4) -> None:
        super().__init__()
        self.latent_shape = (latent, 1, 1)
        width = features * 2 ** (doublings - 1)
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent, width, 4, bias=False)]
        for index in range(doublings):
            narrower = channels if index == doublings - 1 else width // 2
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(width, narrower, 4, stride=2, padding=1, bias=False))
            width = narrower
        self.main = nn.Sequential(*layers, nn.Tanh())

    def forward(self, latent: Tensor) -> Tensor:
        """Draws one image a latent."""
        image: Tensor = self.main(latent)
        return image


class ProjectedDCGAN(nn.Module):
    """Draws [N, channels, 4*size, 4*size] in -1..1 from latents [N, latent].

    A linear layer to [N, features, size, size], then two transposed convolutions of stride 2; batch norm and ReLU
    between them, tanh at the end.

    Source: as DCGAN, in the shape used for 28x28 digits (`size=7`).
    """

    def __init__(self, latent: int = 64, features: int = 64, channels: int = 1, size: int = 7) -> None:
        super().__init__()
        self.latent_shape = (latent,)
        self.shape = (features, size, size)
        self.project = nn.Linear(latent, features * size * size)
        self.norm1 = nn.BatchNorm2d(features)
        self.up1 = nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(features // 2)
        self.up2 = nn.ConvTranspose2d(features // 2, channels, 4, stride=2, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Draws one image a latent."""
        features = torch.relu(self.norm1(self.project(latent).reshape(-1, *self.shape)))
        features = torch.relu(self.norm2(self.up1(features)))
        return torch.tanh(self.up2(features))


def projected_size(tensors: Tensors, key: str, features: int) -> int:
    """Returns the edge of the [features, edge, edge] which the linear layer `key` makes; raises MisfitError."""
    total = shape_of(tensors, key, 2)[0]
    size = isqrt(total // features)
    if size < 1 or features * size * size != total:
        raise MisfitError(f"{key} makes {total} values, expected {features} channels of a square")
    return size


def _detect(tensors: Tensors) -> bool:
    # The discriminator of the PyTorch examples has a main.0 too, but no batch norm after it.
    return {"main.0.weight", "main.1.running_mean"} <= tensors.keys()


def _describe(tensors: Tensors, _hints: Hints) -> Descriptor:
    doublings = indices_of(tensors, "main.")[-1] // 3
    latent = shape_of(tensors, "main.0.weight")[0]
    if not 1 <= doublings <= min(10, MAX_BLOCKS):
        raise MisfitError(f"{doublings} doublings, expected 1 to 10")
    features, channels = shape_of(tensors, f"main.{3 * doublings}.weight")[:2]
    size = 4 * 2**doublings
    return Descriptor(
        "DCGAN",
        {"latent": latent, "features": features, "channels": channels, "doublings": doublings},
        scale=1,
        in_channels=latent,
        out_channels=channels,
        tags=(f"{features}nf", f"{size}px"),
        value_range=RANGE,
        latent=latent,
        inputs={"latent": (latent, 1, 1)},
    )


def _detect_projected(tensors: Tensors) -> bool:
    return {"project.weight", "up1.weight"} <= tensors.keys() and "embedding.weight" not in tensors


def _describe_projected(tensors: Tensors, _hints: Hints) -> Descriptor:
    latent = shape_of(tensors, "project.weight", 2)[1]
    features = shape_of(tensors, "up1.weight")[0]
    channels = shape_of(tensors, "up2.weight")[1]
    size = projected_size(tensors, "project.weight", features)
    return Descriptor(
        "ProjectedDCGAN",
        {"latent": latent, "features": features, "channels": channels, "size": size},
        scale=1,
        in_channels=latent,
        out_channels=channels,
        tags=(f"{features}nf", f"{4 * size}px"),
        value_range=RANGE,
        latent=latent,
        inputs={"latent": (latent,)},
    )


ARCHITECTURE = Architecture("DCGAN", DCGAN, _detect, _describe, example={"latent": 1, "features": 1, "doublings": 1})
PROJECTED = Architecture(
    "ProjectedDCGAN",
    ProjectedDCGAN,
    _detect_projected,
    _describe_projected,
    example={"latent": 1, "features": 2, "size": 1},
)
