"""The recipes: each fixes a network, its training images and how it is trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.discriminators import DCGANDiscriminator
from tilefuse.export.generators.edsr import EDSR
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.export.generators.span import SPAN
from tilefuse.export.generators.srresnet import SRResNet
from tilefuse.export.recipes.dataset import DataMix

ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "EDSR": EDSR,
    "ESPCN": ESPCN,
    "FSRCNN": FSRCNN,
    "RRDBNet": RRDBNet,
    "SPAN": SPAN,
    "SRResNet": SRResNet,
    "SRVGGNetCompact": SRVGGNetCompact,
}


@dataclass(frozen=True)
class AdversarialStage:
    """How a network is trained on against a discriminator, after training for PSNR alone.

    The stage takes the last `share` of the steps. Its loss is Charbonnier's, plus `perceptual_weight` times the
    distance of random features, plus `weight` times the adversarial loss: `relativistic`, or one of
    `losses.ADVERSARIAL`. The learning rate falls linearly to nothing. The discriminator has `stages` convolutions of
    stride 2, the first of `features` channels.
    """

    loss: str
    weight: float
    perceptual_weight: float
    share: float = 0.2
    learning_rate: float = 2e-4
    features: int = 24
    stages: int = 4

    def build(self, edge: int) -> nn.Module:
        """Makes the discriminator of patches of `edge` pixels, its weights drawn from torch's global generator."""
        return DCGANDiscriminator(3, edge, self.features, self.stages)


@dataclass(frozen=True)
class Recipe:
    """How one bundled network is trained.

    `patch` is in low-resolution pixels. The learning rate rises for `warmup` steps, then falls along a cosine to a
    hundredth of `learning_rate`. The loss is Charbonnier's for the first `1 - squared_share` of the steps and the
    squared error for the rest; `luma_weight` of it is on the luma, because that is what PSNR is taken of. With an
    `adversarial` stage all this is of the steps before it.
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
    adversarial: AdversarialStage | None = None

    def reconstruction_steps(self, steps: int) -> int:
        """Gives how many of `steps` come before the adversarial stage."""
        return steps if self.adversarial is None else steps - round(steps * self.adversarial.share)

    def build(self) -> nn.Module:
        """Makes the network, its weights drawn from torch's global generator."""
        return ARCHITECTURES[self.architecture](**self.hyper_parameters)


PICTURES = DataMix(pictures=200, picture_size=360, photograph_share=0.25)
FEWER_PICTURES = DataMix(pictures=100, picture_size=360, photograph_share=0.25)
COARSE_PICTURES = DataMix(pictures=100, picture_size=360, photograph_share=0.25, shortest_wave_px=9.0)

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
        Recipe(
            "fsrcnn-x2",
            "FSRCNN",
            2,
            PICTURES,
            {"scale": 2, "channels": 3},
            steps=36000,
            precision="fp32",
        ),
        Recipe(
            "span-x2",
            "SPAN",
            2,
            FEWER_PICTURES,
            {"feature_channels": 28, "upscale": 2, "img_range": 10.0},
            steps=6000,
            batch=8,
            learning_rate=2e-3,
            checkpoint_steps=250,
        ),
        Recipe(
            "edsr-x2",
            "EDSR",
            2,
            FEWER_PICTURES,
            {"num_feat": 32, "num_block": 16, "upscale": 2, "img_range": 1.0},
            steps=1500,
            batch=8,
            learning_rate=1.5e-3,
            checkpoint_steps=250,
        ),
        Recipe(
            "srgan-x4",
            "SRResNet",
            4,
            COARSE_PICTURES,
            {"channels": 32, "num_block": 6, "num_upsample": 2},
            steps=8000,
            batch=4,
            patch=16,
            learning_rate=2e-3,
            squared_share=0.0,
            checkpoint_steps=300,
            adversarial=AdversarialStage("non_saturating", weight=2e-3, perceptual_weight=0.05),
        ),
        Recipe(
            "esrgan-x4",
            "RRDBNet",
            4,
            COARSE_PICTURES,
            {"num_feat": 24, "num_block": 2, "num_grow_ch": 16},
            steps=10000,
            batch=4,
            patch=16,
            learning_rate=2e-3,
            squared_share=0.0,
            checkpoint_steps=300,
            adversarial=AdversarialStage("relativistic", weight=2e-3, perceptual_weight=0.05),
        ),
    )
}
