"""Trains an autoencoder on the trade between rate and distortion."""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.errors import ModelError
from tilefuse.export.generators.autoencoder import REDUCTION, Autoencoder
from tilefuse.export.recipes.compression_quality import measure_compression
from tilefuse.export.recipes.dataset import DataMix, Pool, build_pool
from tilefuse.export.recipes.latent import LatentRecipe, descend, seeded, set_learning_rate
from tilefuse.export.recipes.loop import update_average
from tilefuse.export.recipes.photographs import VALIDATION
from tilefuse.export.recipes.restoration import quality_of
from tilefuse.export.recipes.restoration_quality import means

LEAST_CHANCE = 1e-6


class LatentPrior(nn.Module):
    """Gives the chance of each rounded latent: a logistic distribution a channel.

    Source: Ballé et al., "Variational Image Compression with a Scale Hyperprior", ICLR 2018, its factorised prior, with
    one logistic in place of a learned density.
    """

    def __init__(self, latents: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(latents))
        self.log_scale = nn.Parameter(torch.zeros(latents))

    def bits(self, latents: Tensor) -> Tensor:
        """Returns the information in bits of latents [N, C, h, w], all together."""
        offset, scale = (latents - self.centre[:, None, None]).abs(), self.log_scale.exp()[:, None, None]
        # On the side of the tail both sigmoids are small, so that their difference keeps its digits.
        chance = torch.sigmoid((0.5 - offset) / scale) - torch.sigmoid((-0.5 - offset) / scale)
        return -chance.clamp_min(LEAST_CHANCE).log2().sum()


@dataclass(frozen=True)
class CompressionRecipe(LatentRecipe):
    """Trains an `Autoencoder` to minimise bits a pixel plus `distortion_weight` times the squared error of 8 bits."""

    pictures: DataMix = field(default_factory=lambda: DataMix(64, 360, 0.3))
    patch: int = 96
    distortion_weight: float = 0.02

    def trainer(self, seed: int, device: torch.device) -> "CompressionTrainer":
        """Makes the autoencoder, drawn from `seed`."""
        return CompressionTrainer(self, seed, device)

    def result(self, trainer: "CompressionTrainer") -> nn.Module:
        """Gives the averaged autoencoder."""
        average: nn.Module = trainer.modules["average"].to(memory_format=torch.contiguous_format)
        return average

    def measure(self, module: nn.Module) -> Mapping[str, float]:
        """Measures PSNR, SSIM and the rate of the whole file on the held-out photographs, beside JPEG."""
        return quality_of(measure_compression(_autoencoder(module)))


class CompressionTrainer:
    """An autoencoder in training."""

    def __init__(self, recipe: CompressionRecipe, seed: int, device: torch.device) -> None:
        with seeded(seed):
            network = Autoencoder(**recipe.hyper_parameters)
        start_as_cosine_transform(network)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe, self.seed, self.device = recipe, seed, device
        self.network: Autoencoder = network
        self.prior = LatentPrior(recipe.hyper_parameters["latents"]).to(device)
        self.modules = {
            "network": network,
            "prior": self.prior,
            "average": deepcopy(network).requires_grad_(False),
        }
        weights = [*network.parameters(), *self.prior.parameters()]
        self.optimisers = {"network": torch.optim.Adam(weights, recipe.learning_rate, (0.9, 0.99))}

    @cached_property
    def pool(self) -> Pool:
        """The pictures."""
        return build_pool(self.recipe.pictures, 1, self.recipe.patch, self.seed)

    def advance(self, step: int, steps: int) -> Mapping[str, float]:
        """Takes one step of Adam.

        Rounding has no gradient: the rate is of latents with uniform noise in its place, and the decoder is given the
        rounded ones as if rounding changed nothing (Minnen and Singh, "Channel-wise Autoregressive Entropy Models for
        Learned Image Compression", ICIP 2020).
        """
        rng = np.random.default_rng([self.seed, step])
        images = self.pool.batch(rng, self.recipe.batch, self.recipe.patch)[1].to(self.device)
        set_learning_rate(self.optimisers["network"], self.recipe.learning_rate, step, steps)
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = self.network.encoder(images.contiguous(memory_format=torch.channels_last))
        latents = latents.float()
        noise = torch.from_numpy(rng.random(tuple(latents.shape), dtype=np.float32) - np.float32(0.5)).to(self.device)
        rate = self.prior.bits(latents + noise) / images[:, :1].numel()
        rounded = latents + (latents.round() - latents).detach()
        with torch.autocast(self.device.type, torch.bfloat16):
            result = self.network.decoder(rounded)
        error = (result.float() - images).square().mean()
        descend(self.optimisers["network"], rate + self.recipe.distortion_weight * 255.0**2 * error)
        update_average(self.modules["average"], self.network, self.recipe.average_decay, step)
        return {"bits_per_pixel": rate.item(), "psnr_db": -10.0 * math.log10(max(error.item(), 1e-12))}

    def validate(self) -> Mapping[str, float]:
        """Gives PSNR and rate of the averaged autoencoder on validation photographs."""
        scores = measure_compression(_autoencoder(self.modules["average"]), VALIDATION[:2])
        return {key: value for key, value in means(scores)["model"].items() if key != "ssim"}


def start_as_cosine_transform(network: Autoencoder) -> None:
    """Sets the weights so that the latents are the lowest frequencies of a DCT of 8x8 blocks, and the rest gives 0.

    Five latents of eight are of the luma, three of two opponent colours; all transforms are orthonormal.
    """
    steps = torch.arange(REDUCTION, dtype=torch.float64)
    waves = torch.cos(math.pi / REDUCTION * (steps[None] + 0.5) * steps[:, None]) * math.sqrt(2.0 / REDUCTION)
    waves[0] /= math.sqrt(2.0)
    frequencies = sorted(product(range(REDUCTION), repeat=2), key=lambda f: (f[0] + f[1], abs(f[0] - f[1]), f))
    colours = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64))
    latents = network.encoder.latents.out_channels
    colour_count = latents * 3 // 16
    counts = (latents - 2 * colour_count, colour_count, colour_count)
    basis = torch.stack(
        [
            colour[:, None, None] * torch.outer(waves[y], waves[x])
            for colour, count in zip(colours, counts, strict=True)
            for y, x in frequencies[:count]
        ]
    ).float()
    with torch.no_grad():
        linear = network.encoder.transform, network.decoder.inverse
        added = network.encoder.latents, network.decoder.up[-1]
        for weight in (weight for layer in (*linear, *added) for weight in layer.parameters()):
            weight.zero_()
        linear[0].weight.copy_(basis)
        linear[1].weight.copy_(basis)


def _autoencoder(module: nn.Module) -> Autoencoder:
    if not isinstance(module, Autoencoder):
        raise ModelError(f"the recipe makes an Autoencoder, not a {type(module).__name__}")
    return module
