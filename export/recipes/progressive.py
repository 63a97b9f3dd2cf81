"""Trains a PGGAN while it grows from 4x4 pixels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.errors import ModelError
from tilefuse.export.generators.progressive import GrowingDiscriminator, GrowingPGGAN
from tilefuse.export.recipes.adversarial import AdversarialRecipe, AdversarialTrainer
from tilefuse.export.recipes.latent import seeded
from tilefuse.export.recipes.sources import source_of


@dataclass(frozen=True)
class ProgressiveRecipe(AdversarialRecipe):
    """Trains a PGGAN; `shares` of the steps go to each level, the first half of each to fading it in."""

    shares: tuple[float, ...] = (0.1, 0.15, 0.25, 0.5)

    def trainer(self, seed: int, device: torch.device) -> "ProgressiveTrainer":
        """Makes generator and discriminator, drawn from `seed`."""
        widths, channels = self.hyper_parameters["widths"], self.hyper_parameters["channels"]
        if len(widths) != len(self.shares):
            raise ModelError(f"{self.name} has {len(widths)} levels and {len(self.shares)} shares, expected as many")
        with seeded(seed):
            generator = GrowingPGGAN(self.hyper_parameters["latent"], widths, channels)
            discriminator = GrowingDiscriminator(self.discriminator["widths"], channels)
        return ProgressiveTrainer(self, generator, discriminator, source_of(self.data, self.value_range), seed, device)

    def result(self, trainer: AdversarialTrainer) -> nn.Module:
        """Gives the averaged generator, folded to plain layers."""
        average = trainer.modules["average"]
        if not isinstance(average, GrowingPGGAN):
            raise ModelError(f"the recipe {self.name} grows a PGGAN, not a {type(average).__name__}")
        return average.fold()


class ProgressiveTrainer(AdversarialTrainer):
    """A PGGAN and its discriminator in growth."""

    recipe: ProgressiveRecipe

    def _growth(self, step: int, steps: int) -> tuple[Any, ...]:
        return growth(self.recipe.shares, step / steps)

    def _real(self, rng: np.random.Generator, step: int, steps: int) -> tuple[Tensor, Tensor | None]:
        images, _ = super()._real(rng, step, steps)
        level, alpha = growth(self.recipe.shares, step / steps)
        return faded(images, len(self.recipe.shares) - 1 - level, 1.0 if level == 0 else alpha), None


def growth(shares: tuple[float, ...], progress: float) -> tuple[int, float]:
    """Gives level and alpha at `progress` in 0..1: each level fades in over the first half of its share."""
    begun = 0.0
    for level, share in enumerate(shares):
        if progress < begun + share:
            return level, 1.0 if level == 0 else min(1.0, 2.0 * (progress - begun) / share)
        begun += share
    return len(shares) - 1, 1.0


def faded(images: Tensor, halvings: int, alpha: float) -> Tensor:
    """Shrinks real images [N, C, H, W] by 2**halvings and blends in those of half that size by 1 - alpha.

    Real images then lack the detail that the fading generator can't draw yet.
    """
    images = F.avg_pool2d(images, 2**halvings)
    if alpha == 1.0:
        return images
    below = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="nearest")
    return torch.lerp(below, images, alpha)
