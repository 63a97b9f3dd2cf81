"""The recipes: each fixes a network, its training images and how it is trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.edsr import EDSR
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.export.recipes.dataset import DataMix

ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "EDSR": EDSR,
    "ESPCN": ESPCN,
    "FSRCNN": FSRCNN,
    "SRVGGNetCompact": SRVGGNetCompact,
}


@dataclass(frozen=True)
class Recipe:
    """How one bundled network is trained.

    `patch` is in low-resolution pixels. The learning rate rises for `warmup` steps, then falls along a cosine to a
    hundredth of `learning_rate`. The loss is Charbonnier's for the first `1 - squared_share` of the steps and the
    squared error for the rest; `luma_weight` of it is on the luma, because that is what PSNR is taken of.
    """

    name: str
    architecture: str
    scale: int
    data: DataMix
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 20000
    batch: int = 16
    patch: int = 24
    learning_rate: float = 4e-3
    warmup: int = 200
    squared_share: float = 0.3
    luma_weight: float = 0.7
    average_decay: float = 0.999
    precision: str = "bf16"
    checkpoint_steps: int = 1000

    def build(self) -> nn.Module:
        """Makes the network, its weights drawn from torch's global generator."""
        return ARCHITECTURES[self.architecture](**self.hyper_parameters)


PICTURES = DataMix(pictures=200, picture_size=360, photograph_share=0.25)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        *(
            Recipe(f"espcn-x{scale}", "ESPCN", scale, PICTURES, {"scale": scale, "residual": True}, steps=steps)
            for scale, steps in ((2, 20000), (3, 12000), (4, 30000))
        ),
        Recipe(
            "compact-x4",
            "SRVGGNetCompact",
            4,
            DataMix(pictures=300, picture_size=360, photograph_share=0.25, shortest_wave_px=9.0),
            {"num_feat": 48, "num_conv": 8, "upscale": 4},
            steps=10000,
            learning_rate=3e-3,
            squared_share=0.0,
            checkpoint_steps=500,
        ),
        Recipe("fsrcnn-x2", "FSRCNN", 2, PICTURES, {"scale": 2, "channels": 3}, steps=9000, learning_rate=3e-3),
    )
}
