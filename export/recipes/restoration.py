"""Trains restoration networks: on noisy pictures, or on pictures with holes."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tilefuse.export.generators.restoration import RestorationNet
from tilefuse.export.recipes.corruption import add_noise, cut_holes, square_holes
from tilefuse.export.recipes.dataset import DataMix, Pool, build_pool
from tilefuse.export.recipes.latent import LatentRecipe, descend, seeded, set_learning_rate
from tilefuse.export.recipes.loop import update_average
from tilefuse.export.recipes.photographs import VALIDATION
from tilefuse.export.recipes.restoration_quality import PictureScore, means, measure_denoising, measure_inpainting

Damage = Literal["noise", "holes"]

MEASURES: Mapping[Damage, Callable[..., list[PictureScore]]] = {
    "noise": measure_denoising,
    "holes": measure_inpainting,
}


@dataclass(frozen=True)
class RestorationRecipe(LatentRecipe):
    """Trains a `RestorationNet` to undo one `damage`.

    Patches of `patch` pixels are cut from `pictures`. The loss is Charbonnier's for the first `1 - squared_share` of
    the steps and the squared error for the rest, of holes only where there are any.
    """

    damage: Damage = "noise"
    pictures: DataMix = field(default_factory=lambda: DataMix(64, 360, 0.3))
    patch: int = 48
    squared_share: float = 0.3

    def trainer(self, seed: int, device: torch.device) -> "RestorationTrainer":
        """Makes the network, drawn from `seed`."""
        return RestorationTrainer(self, seed, device)

    def result(self, trainer: "RestorationTrainer") -> nn.Module:
        """Gives the averaged network."""
        average: nn.Module = trainer.modules["average"].to(memory_format=torch.contiguous_format)
        return average

    def measure(self, module: nn.Module) -> Mapping[str, float]:
        """Measures PSNR and SSIM on the held-out photographs, beside the ways that need no network."""
        return quality_of(MEASURES[self.damage](module))


class RestorationTrainer:
    """A restoration network in training."""

    def __init__(self, recipe: RestorationRecipe, seed: int, device: torch.device) -> None:
        with seeded(seed):
            network = RestorationNet(**recipe.hyper_parameters)
        if recipe.damage == "holes":
            # Nothing is added to the interpolation at first.
            with torch.no_grad():
                for weight in network.tail.parameters():
                    weight.zero_()
        # Half again as fast on a CPU, whose bf16 convolutions are written for this order.
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe, self.seed, self.device = recipe, seed, device
        self.modules = {"network": network, "average": deepcopy(network).requires_grad_(False)}
        self.optimisers = {"network": torch.optim.Adam(network.parameters(), recipe.learning_rate, (0.9, 0.99))}

    @cached_property
    def pool(self) -> Pool:
        """The pictures."""
        return build_pool(self.recipe.pictures, 1, self.recipe.patch, self.seed)

    def advance(self, step: int, steps: int) -> Mapping[str, float]:
        """Takes one step of Adam."""
        rng = np.random.default_rng([self.seed, step])
        clean = self.pool.batch(rng, self.recipe.batch, self.recipe.patch)[1].to(self.device)
        damaged, where = self._damage(clean, rng)
        network, optimiser = self.modules["network"], self.optimisers["network"]
        set_learning_rate(optimiser, self.recipe.learning_rate, step, steps)
        with torch.autocast(self.device.type, torch.bfloat16):
            result = network(damaged.contiguous(memory_format=torch.channels_last))
        error = (result.float() - clean).square() * where
        squared = step >= steps * (1.0 - self.recipe.squared_share)
        # Ten times the squared error has gradients about as large as Charbonnier's where the switch happens.
        total = 10.0 * error.sum() if squared else ((error + 1e-6).sqrt() * where).sum()
        loss = total / (where.expand_as(error).sum() + 1.0)
        descend(optimiser, loss)
        update_average(self.modules["average"], network, self.recipe.average_decay, step)
        return {"squared" if squared else "charbonnier": loss.item()}

    def validate(self) -> Mapping[str, float]:
        """Gives the mean PSNR of the averaged network on validation photographs."""
        scores = MEASURES[self.recipe.damage](self.modules["average"], VALIDATION[:2])
        return {"psnr_db": means(scores)["model"]["psnr_db"]}

    def _damage(self, clean: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        if self.recipe.damage == "noise":
            return add_noise(clean, rng).clamp(0.0, 1.0), torch.ones_like(clean[:, :1])
        height, width = clean.shape[2:]
        masks = np.stack([square_holes(height, width, rng) for _ in range(len(clean))])[:, None]
        holes = torch.from_numpy(masks).to(clean)
        return cut_holes(clean, holes), holes


def quality_of(scores: list[PictureScore]) -> dict[str, float]:
    """Flattens the means of each method to names such as `median_3x3_psnr_db`, the model's own without its name."""
    return {
        ("" if method == "model" else method.replace(" ", "_") + "_") + measure: value
        for method, values in means(scores).items()
        for measure, value in values.items()
    }
