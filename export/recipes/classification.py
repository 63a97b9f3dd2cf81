"""Trains the digit classifier with cross entropy on shifted and turned digits."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.export.generators.classifier import Classifier
from tilefuse.export.recipes.digits import Digits, load_digits
from tilefuse.export.recipes.latent import LatentRecipe, descend, mixed_precision, seeded, set_learning_rate
from tilefuse.export.recipes.loop import update_average

LARGEST_SHIFT = 0.12
LARGEST_TURN = 0.2
LARGEST_STRETCH = 0.12


@dataclass(frozen=True)
class ClassificationRecipe(LatentRecipe):
    """Trains a `Classifier` on digits."""

    weight_decay: float = 1e-3

    def trainer(self, seed: int, device: torch.device) -> "ClassificationTrainer":
        """Makes the classifier, drawn from `seed`."""
        return ClassificationTrainer(self, seed, device)

    def result(self, trainer: "ClassificationTrainer") -> nn.Module:
        """Gives the averaged classifier."""
        return trainer.modules["average"]

    def measure(self, module: nn.Module) -> Mapping[str, float]:
        """Measures accuracy on held-out digits."""
        return {"accuracy": accuracy(module, load_digits())}


class ClassificationTrainer:
    """A classifier in training."""

    def __init__(self, recipe: ClassificationRecipe, seed: int, device: torch.device) -> None:
        with seeded(seed):
            network = Classifier(**recipe.hyper_parameters).to(device)
        self.recipe, self.seed, self.device = recipe, seed, device
        self.modules = {"network": network, "average": deepcopy(network).requires_grad_(False)}
        self.optimisers = {
            "network": torch.optim.AdamW(
                network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
            )
        }

    @cached_property
    def digits(self) -> Digits:
        """The digits."""
        return load_digits()

    def advance(self, step: int, steps: int) -> Mapping[str, float]:
        """Takes one step of AdamW on the cross entropy."""
        rng = np.random.default_rng([self.seed, step])
        chosen = torch.from_numpy(rng.integers(len(self.digits.train.labels), size=self.recipe.batch))
        images = distorted(self.digits.train.images[chosen], rng).to(self.device)
        network, optimiser = self.modules["network"], self.optimisers["network"]
        set_learning_rate(optimiser, self.recipe.learning_rate, step, steps)
        with mixed_precision(self.device):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), self.digits.train.labels[chosen].to(self.device))
        descend(optimiser, loss)
        update_average(self.modules["average"], network, self.recipe.average_decay, step)
        return {"cross_entropy": loss.item()}

    def validate(self) -> Mapping[str, float]:
        """Gives the accuracy of the averaged weights on training digits as they are."""
        digits = self.digits.train
        with torch.inference_mode():
            predicted = self.modules["average"](digits.images.to(self.device)).argmax(1).cpu()
        return {"accuracy": (predicted == digits.labels).double().mean().item()}


def accuracy(module: nn.Module, digits: Digits) -> float:
    """Returns the share of held-out digits that are classified rightly."""
    with torch.inference_mode():
        predicted: Tensor = module(digits.held_out.images).argmax(1)
    return (predicted == digits.held_out.labels).double().mean().item()


def distorted(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Turns (radians), stretches and shifts (shares of half the image) each of [N, 1, H, W] at random."""
    count = len(images)
    turn = rng.uniform(-LARGEST_TURN, LARGEST_TURN, count)
    stretch = 1.0 + rng.uniform(-LARGEST_STRETCH, LARGEST_STRETCH, (count, 2))
    matrix = np.empty((count, 2, 3), dtype=np.float32)
    matrix[:, 0, 0], matrix[:, 0, 1] = np.cos(turn) * stretch[:, 0], -np.sin(turn) * stretch[:, 1]
    matrix[:, 1, 0], matrix[:, 1, 1] = np.sin(turn) * stretch[:, 0], np.cos(turn) * stretch[:, 1]
    matrix[:, :, 2] = rng.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, (count, 2))
    grid = F.affine_grid(torch.from_numpy(matrix), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
