"""Trains a variational autoencoder."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tilefuse.errors import ModelError
from tilefuse.export.generators.vae import VAE, reparameterise
from tilefuse.export.recipes.digits import load_digits
from tilefuse.export.recipes.latent import LatentRecipe, descend, mixed_precision, seeded, set_learning_rate
from tilefuse.export.recipes.loop import update_average
from tilefuse.export.recipes.losses import kl_divergence, reconstruction
from tilefuse.export.recipes.sources import measure_generator, source_of


@dataclass(frozen=True)
class VariationalRecipe(LatentRecipe):
    """Trains a `VAE`; the KL divergence counts `kl_weight` times."""

    kl_weight: float = 1.0

    def trainer(self, seed: int, device: torch.device) -> "VariationalTrainer":
        """Makes the autoencoder, drawn from `seed`."""
        return VariationalTrainer(self, seed, device)

    def result(self, trainer: "VariationalTrainer") -> nn.Module:
        """Gives the averaged autoencoder."""
        return trainer.modules["average"]

    def measure(self, module: nn.Module) -> Mapping[str, float]:
        """Measures samples, and the PSNR in dB of reconstructed held-out digits."""
        if not isinstance(module, VAE):
            raise ModelError(f"the recipe {self.name} makes a VAE, not a {type(module).__name__}")
        images = load_digits().held_out.images
        with torch.inference_mode():
            error = (module.reconstruct(images) - images).square().mean()
        scores = dict(measure_generator(module, self.data, self.value_range))
        return scores | {"reconstruction_db": -10.0 * torch.log10(error).item()}


class VariationalTrainer:
    """A variational autoencoder in training."""

    def __init__(self, recipe: VariationalRecipe, seed: int, device: torch.device) -> None:
        with seeded(seed):
            network = VAE(**recipe.hyper_parameters).to(device)
        self.recipe, self.seed, self.device, self.network = recipe, seed, device, network
        self.source = source_of(recipe.data, recipe.value_range)
        self.modules = {"network": network, "average": deepcopy(network).requires_grad_(False)}
        self.optimisers = {"network": torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)}

    def advance(self, step: int, steps: int) -> Mapping[str, float]:
        """Takes one step of Adam on reconstruction plus KL divergence."""
        rng = np.random.default_rng([self.seed, step])
        images = self.source.batch(rng, self.recipe.batch)[0].to(self.device)
        noise = rng.standard_normal((len(images), *self.network.latent_shape), dtype=np.float32)
        set_learning_rate(self.optimisers["network"], self.recipe.learning_rate, step, steps)
        error, divergence = self._losses(images, torch.from_numpy(noise).to(self.device))
        descend(self.optimisers["network"], error + self.recipe.kl_weight * divergence)
        update_average(self.modules["average"], self.network, self.recipe.average_decay, step)
        return {"reconstruction": error.item(), "kl": divergence.item()}

    def validate(self) -> Mapping[str, float]:
        """Gives the reconstruction loss of the averaged weights on a fixed batch."""
        images = self.source.batch(np.random.default_rng(0), self.recipe.batch)[0].to(self.device)
        average = self.modules["average"]
        with torch.inference_mode():
            return {"reconstruction": reconstruction(average.decoder(average.encode(images)[0]), images).item()}

    def _losses(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with mixed_precision(self.device):
            mean, log_variance = (moments.float() for moments in self.network.encode(images))
            logits = self.network.decoder(reparameterise(mean, log_variance, noise)).float()
        return reconstruction(logits, images), kl_divergence(mean, log_variance)
