"""Trains a generator against a discriminator."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tilefuse.export.generators.cgan import CGAN, ProjectionDiscriminator, one_hot
from tilefuse.export.generators.dcgan import DCGAN, ProjectedDCGAN
from tilefuse.export.generators.discriminators import DCGANDiscriminator
from tilefuse.export.generators.gan import GAN, GANDiscriminator
from tilefuse.export.recipes.latent import LatentRecipe, descend, mixed_precision, seeded, set_learning_rate
from tilefuse.export.recipes.loop import update_average
from tilefuse.export.recipes.losses import ADVERSARIAL, gradient_penalty, real_gradient_penalty
from tilefuse.export.recipes.sources import Source, draw_latents, measure_generator, source_of

NETWORKS: Mapping[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "GAN": (GAN, GANDiscriminator),
    "DCGAN": (DCGAN, DCGANDiscriminator),
    "ProjectedDCGAN": (ProjectedDCGAN, DCGANDiscriminator),
    "CGAN": (CGAN, ProjectionDiscriminator),
}


@dataclass(frozen=True)
class AdversarialRecipe(LatentRecipe):
    """Trains a generator with one of `losses.ADVERSARIAL`.

    `penalty` weighs the gradient penalty: that of WGAN-GP with the Wasserstein loss, that on real images (R1) with the
    others. It is taken each `penalty_interval` steps, so many times as heavy. The discriminator takes `critic_steps` a
    step of the generator.
    """

    discriminator: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "non_saturating"
    penalty: float = 0.0
    penalty_interval: int = 1
    critic_steps: int = 1
    betas: tuple[float, float] = (0.5, 0.99)

    def trainer(self, seed: int, device: torch.device) -> "AdversarialTrainer":
        """Makes generator and discriminator, drawn from `seed`."""
        generator, discriminator = NETWORKS[self.architecture]
        with seeded(seed):
            networks = generator(**self.hyper_parameters), discriminator(**self.discriminator)
        return AdversarialTrainer(
            self,
            *networks,
            source_of(self.data, self.value_range, self.hyper_parameters.get("classes", 0)),
            seed,
            device,
        )

    def result(self, trainer: "AdversarialTrainer") -> nn.Module:
        """Gives the averaged generator."""
        return trainer.modules["average"]

    def measure(self, module: nn.Module) -> Mapping[str, float]:
        """Measures samples of fixed latents against held-out images."""
        return measure_generator(module, self.data, self.value_range)


class AdversarialTrainer:
    """A generator and a discriminator in training."""

    def __init__(
        self,
        recipe: AdversarialRecipe,
        generator: nn.Module,
        discriminator: nn.Module,
        source: Source,
        seed: int,
        device: torch.device,
    ) -> None:
        self.recipe, self.source, self.seed, self.device = recipe, source, seed, device
        generator, discriminator = generator.to(device), discriminator.to(device)
        self.modules = {
            "generator": generator,
            "discriminator": discriminator,
            "average": deepcopy(generator).requires_grad_(False).eval(),
        }
        self.optimisers = {
            name: torch.optim.Adam(self.modules[name].parameters(), lr=recipe.learning_rate, betas=recipe.betas)
            for name in ("generator", "discriminator")
        }

    def advance(self, step: int, steps: int) -> Mapping[str, float]:
        """Takes `critic_steps` steps of the discriminator and one of the generator."""
        rng = np.random.default_rng([self.seed, step])
        for optimiser in self.optimisers.values():
            set_learning_rate(optimiser, self.recipe.learning_rate, step, steps)
        losses: dict[str, float] = {}
        for _ in range(self.recipe.critic_steps):
            losses |= self._train_discriminator(rng, step, steps)
        losses |= self._train_generator(rng, step, steps)
        update_average(self.modules["average"], self.modules["generator"], self.recipe.average_decay, step)
        return losses

    def validate(self) -> Mapping[str, float]:
        """Gives the spread of the averaged generator's images, which falls to nothing when it collapses."""
        rng = np.random.default_rng([self.seed, 1, 2])
        with torch.inference_mode():
            inputs = self._inputs(rng, self.recipe.batch, None)
            images = self.modules["average"](*inputs, *self._growth(1, 1))
        return {"spread": images.std(0).mean().item()}

    def _growth(self, _step: int, _steps: int) -> tuple[Any, ...]:
        """Gives what networks that grow are told beside their inputs."""
        return ()

    def _real(self, rng: np.random.Generator, _step: int, _steps: int) -> tuple[Tensor, Tensor | None]:
        images, labels = self.source.batch(rng, self.recipe.batch)
        return images.to(self.device), labels

    def _inputs(self, rng: np.random.Generator, count: int, labels: Tensor | None) -> tuple[Tensor, ...]:
        """Draws what the generator takes; labels as given, or at random where it is told a class."""
        latents = draw_latents(self.modules["generator"], count, rng).to(self.device)
        classes = self.source.classes
        if classes == 0:
            return (latents,)
        labels = torch.from_numpy(rng.integers(classes, size=count)) if labels is None else labels
        return latents, one_hot(labels, classes).to(self.device)

    def _train_discriminator(self, rng: np.random.Generator, step: int, steps: int) -> dict[str, float]:
        generator, discriminator = self.modules["generator"], self.modules["discriminator"]
        real, labels = self._real(rng, step, steps)
        inputs = self._inputs(rng, len(real), labels)
        growth, extra = self._growth(step, steps), inputs[1:]
        with torch.no_grad(), mixed_precision(self.device):
            drawn = generator(*inputs, *growth).float()
        with mixed_precision(self.device):
            scores = discriminator(real, *extra, *growth), discriminator(drawn, *extra, *growth)
        loss = ADVERSARIAL[self.recipe.loss].discriminator(scores[0].float(), scores[1].float())
        losses = {"discriminator": loss.item()}
        if self.recipe.penalty and step % self.recipe.penalty_interval == 0:
            penalty = self._penalty(lambda images: discriminator(images, *extra, *growth), real, drawn, rng)
            losses["penalty"] = penalty.item()
            loss = loss + self.recipe.penalty * self.recipe.penalty_interval * penalty
        descend(self.optimisers["discriminator"], loss)
        return losses

    def _penalty(
        self, critic: Callable[[Tensor], Tensor], real: Tensor, drawn: Tensor, rng: np.random.Generator
    ) -> Tensor:
        if self.recipe.loss == "wasserstein":
            mix = torch.from_numpy(rng.random(len(real), dtype=np.float32)).to(self.device)
            return gradient_penalty(critic, real, drawn, mix)
        return real_gradient_penalty(critic, real)

    def _train_generator(self, rng: np.random.Generator, step: int, steps: int) -> dict[str, float]:
        generator, discriminator = self.modules["generator"], self.modules["discriminator"]
        inputs, growth = self._inputs(rng, self.recipe.batch, None), self._growth(step, steps)
        discriminator.requires_grad_(False)
        with mixed_precision(self.device):
            score = discriminator(generator(*inputs, *growth), *inputs[1:], *growth)
        loss = ADVERSARIAL[self.recipe.loss].generator(score.float())
        descend(self.optimisers["generator"], loss)
        discriminator.requires_grad_(True)
        return {"generator": loss.item()}
