"""The adversarial stage of an upscaler: a discriminator of real and upscaled patches, and what it adds to the loss."""

import torch
from torch import Tensor, nn

from tilefuse.export.recipes.losses import ADVERSARIAL, relativistic_average
from tilefuse.export.recipes.random_features import perceptual_distance, random_features
from tilefuse.export.recipes.registry import AdversarialStage
from tilefuse.export.recipes.resume import Trained

FILTERS, KERNEL_PX, SCALES = 32, 5, 3


def train_critic(
    stage: AdversarialStage,
    critic: Trained,
    real: Tensor,
    drawn: Tensor,
    rate: float,
    mixed_precision: torch.autocast,
) -> None:
    """Takes one step of the discriminator towards telling real from drawn patches [N, 3, H, W]."""
    for group in critic.optimiser.param_groups:
        group["lr"] = rate
    with mixed_precision:
        logits = critic.network(real), critic.network(drawn)
    compare = relativistic_average if stage.loss == "relativistic" else ADVERSARIAL[stage.loss].discriminator
    loss = compare(logits[0].float(), logits[1].float())
    critic.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    critic.optimiser.step()


def unlikeness(
    stage: AdversarialStage,
    discriminator: nn.Module,
    real: Tensor,
    drawn: Tensor,
    mixed_precision: torch.autocast,
) -> Tensor:
    """Returns the weighted adversarial and perceptual losses of drawn patches [N, 3, H, W] for real ones."""
    with mixed_precision:
        logits = discriminator(drawn)
        distance = perceptual_distance(random_features(FILTERS, KERNEL_PX, SCALES), drawn, real)
        if stage.loss == "relativistic":
            adversarial = relativistic_average(logits.float(), discriminator(real).float().detach())
        else:
            adversarial = ADVERSARIAL[stage.loss].generator(logits.float())
    return stage.weight * adversarial + stage.perceptual_weight * distance.float()
