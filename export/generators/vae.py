"""Variational autoencoder: an encoder to a Gaussian over latents, and the decoder that draws from it."""

import torch
from torch import Tensor, nn

from tilefuse.export.descriptor import Architecture, Descriptor, Hints, MisfitError, Tensors, shape_of
from tilefuse.export.generators.dcgan import projected_size


class Decoder(nn.Module):
    """Turns latents [N, latent] into the logits [N, channels, 4*size, 4*size] of pixels."""

    def __init__(self, latent: int, features: int, channels: int, size: int) -> None:
        super().__init__()
        self.shape = (features, size, size)
        self.project = nn.Linear(latent, features * size * size)
        self.up1 = nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(features // 2, channels, 4, stride=2, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        """Gives the logits of one image a latent."""
        features = torch.relu(self.project(latent)).reshape(-1, *self.shape)
        logits: Tensor = self.up2(torch.relu(self.up1(features)))
        return logits


class Encoder(nn.Module):
    """Turns images [N, channels, 4*size, 4*size] in 0..1 into [N, 2*latent]: means, then logarithms of variances."""

    def __init__(self, latent: int, features: int, channels: int, size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features // 2, 4, stride=2, padding=1)
        self.conv2 = nn.Conv2d(features // 2, features, 4, stride=2, padding=1)
        self.moments = nn.Linear(features * size * size, 2 * latent)

    def forward(self, image: Tensor) -> Tensor:
        """Gives the moments of a batch."""
        features = torch.relu(self.conv2(torch.relu(self.conv1(image))))
        moments: Tensor = self.moments(features.flatten(1))
        return moments


class VAE(nn.Module):
    """Draws [N, channels, 4*size, 4*size] in 0..1 from latents [N, latent]: as a module, it is its decoder.

    `encoder` and `decoder` are modules of their own, to be captured and exported apart.

    Source: Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014.
    """

    def __init__(self, latent: int = 16, features: int = 32, channels: int = 1, size: int = 7) -> None:
        super().__init__()
        self.latent_shape = (latent,)
        self.decoder = Decoder(latent, features, channels, size)
        self.encoder = Encoder(latent, features, channels, size)

    def forward(self, latent: Tensor) -> Tensor:
        """Draws one image a latent."""
        return torch.sigmoid(self.decoder(latent))

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Gives mean and logarithm of the variance, [N, latent] each, of the latents of a batch of images."""
        mean, log_variance = self.encoder(image).chunk(2, 1)
        return mean, log_variance

    def reconstruct(self, image: Tensor) -> Tensor:
        """Encodes a batch and draws it again from the mean latents."""
        reconstruction: Tensor = self(self.encode(image)[0])
        return reconstruction


def reparameterise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Turns standard normal `noise` into samples of the Gaussian, differentiably: mean + exp(log_variance/2)*noise."""
    return mean + torch.exp(0.5 * log_variance) * noise


def _detect(tensors: Tensors) -> bool:
    return {"decoder.project.weight", "encoder.moments.weight"} <= tensors.keys()


def _describe(tensors: Tensors, _hints: Hints) -> Descriptor:
    latent = shape_of(tensors, "decoder.project.weight", 2)[1]
    features = shape_of(tensors, "decoder.up1.weight")[0]
    channels = shape_of(tensors, "decoder.up2.weight")[1]
    size = projected_size(tensors, "decoder.project.weight", features)
    if shape_of(tensors, "encoder.moments.weight", 2)[0] != 2 * latent:
        raise MisfitError(f"encoder.moments does not give the {2 * latent} moments of the decoder's latents")
    return Descriptor(
        "VAE",
        {"latent": latent, "features": features, "channels": channels, "size": size},
        scale=1,
        in_channels=latent,
        out_channels=channels,
        tags=(f"{features}nf", f"{4 * size}px"),
        latent=latent,
        inputs={"latent": (latent,)},
    )


ARCHITECTURE = Architecture("VAE", VAE, _detect, _describe, example={"latent": 1, "features": 2, "size": 1})
