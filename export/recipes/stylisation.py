"""Trains feed-forward style transfer networks."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilefuse.export.generators.stylenet import TransformerNet
from tilefuse.export.recipes.dataset import DataMix, Pool, build_pool
from tilefuse.export.recipes.latent import LatentRecipe, descend, seeded, set_learning_rate
from tilefuse.export.recipes.loop import update_average
from tilefuse.export.recipes.photographs import MEASURED, VALIDATION, held_out_photograph
from tilefuse.export.recipes.starts import start_as_interpolation
from tilefuse.export.recipes.style_losses import (
    Texture,
    content_loss,
    style_loss,
    textures_of,
    total_variation,
)
from tilefuse.export.recipes.style_pictures import STYLES

STYLE_SEED, STYLE_PX = 0, 256
ALIGNMENT = 4


@dataclass(frozen=True)
class StyleRecipe(LatentRecipe):
    """Trains a `TransformerNet` to draw in one of `style_pictures.STYLES`.

    The loss is that of content, of `style_weight` times the style and of `smoothness` times the total variation, on
    crops of `patch` pixels.
    """

    style: str = "mosaic"
    style_weight: float = 50.0
    smoothness: float = 0.1
    pictures: DataMix = field(default_factory=lambda: DataMix(48, 256, 0.5))
    patch: int = 128

    def trainer(self, seed: int, device: torch.device) -> "StyleTrainer":
        """Makes the network, drawn from `seed`."""
        return StyleTrainer(self, seed, device)

    def result(self, trainer: "StyleTrainer") -> nn.Module:
        """Gives the averaged network."""
        average: nn.Module = trainer.modules["average"]
        return average.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload, no-any-return]

    def measure(self, module: nn.Module) -> Mapping[str, float]:
        """Measures the mean losses on held-out photographs, beside the style loss of the photographs themselves."""
        return measure_style(module, self.style)

    def _metadata(self, steps: int, seed: int, quality: Mapping[str, float]) -> dict[str, str]:
        style = f"{self.style}, {STYLE_PX} pixels, drawn from seed {STYLE_SEED}"
        return {**super()._metadata(steps, seed, quality), "style": style}


class StyleTrainer:
    """A style transfer network in training."""

    def __init__(self, recipe: StyleRecipe, seed: int, device: torch.device) -> None:
        with seeded(seed):
            network = TransformerNet(**recipe.hyper_parameters)
        start_as_interpolation(network)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe, self.seed, self.device = recipe, seed, device
        self.modules = {"network": network, "average": deepcopy(network).requires_grad_(False)}
        self.optimisers = {"network": torch.optim.Adam(network.parameters(), recipe.learning_rate)}

    @cached_property
    def pool(self) -> Pool:
        """The pictures."""
        return build_pool(self.recipe.pictures, 1, self.recipe.patch, self.seed)

    @cached_property
    def textures(self) -> tuple[Texture, ...]:
        """What the style measures."""
        return textures_of(style_picture(self.recipe.style).to(self.device))

    def advance(self, step: int, steps: int) -> Mapping[str, float]:
        """Takes one step of Adam."""
        rng = np.random.default_rng([self.seed, step])
        contents = self.pool.batch(rng, self.recipe.batch, self.recipe.patch)[1].to(self.device)
        network, optimiser = self.modules["network"], self.optimisers["network"]
        set_learning_rate(optimiser, self.recipe.learning_rate, step, steps)
        with torch.autocast(self.device.type, torch.bfloat16):
            images = network(contents.contiguous(memory_format=torch.channels_last))
        images = images.float()
        style, content = style_loss(images, self.textures), content_loss(images, contents)
        # Values that no image can hold would cost nothing otherwise.
        outside = (images - images.clamp(0.0, 1.0)).square().mean()
        smooth = total_variation(images)
        descend(
            optimiser, content + self.recipe.style_weight * style + self.recipe.smoothness * smooth + 10.0 * outside
        )
        update_average(self.modules["average"], network, self.recipe.average_decay, step)
        return {"style": style.item(), "content": content.item()}

    def validate(self) -> Mapping[str, float]:
        """Gives the losses of the averaged network on a validation photograph."""
        return measure_style(self.modules["average"], self.recipe.style, VALIDATION[:1])


def style_picture(style: str) -> Tensor:
    """Draws the picture [1, 3, H, W] that the recipe of `style` learns from."""
    return _tensor(STYLES[style](STYLE_SEED, STYLE_PX))


def measure_style(module: nn.Module, style: str, names: tuple[str, ...] = MEASURED) -> dict[str, float]:
    """Measures the mean style and content loss of drawn photographs, and the style loss of the photographs."""
    textures = textures_of(style_picture(style))
    scores = []
    with torch.inference_mode():
        for name in names:
            photograph = held_out_photograph(name)[: STYLE_PX * 2, : STYLE_PX * 2]
            height, width = (edge // ALIGNMENT * ALIGNMENT for edge in photograph.shape[:2])
            content = _tensor(photograph[:height, :width])
            drawn = module(content).clamp(0.0, 1.0)
            losses = style_loss(drawn, textures), content_loss(drawn, content), style_loss(content, textures)
            scores.append([loss.item() for loss in losses])
    means = np.mean(scores, axis=0)
    return dict(zip(("style", "content", "photograph_style"), map(float, means), strict=True))


def _tensor(picture: NDArray[np.uint8]) -> Tensor:
    return torch.tensor(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255.0
