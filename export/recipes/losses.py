"""The losses of generative training, written out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """What discriminator and generator minimise, of the logits [N] of real and of drawn images."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def _cross_entropy(real: Tensor, drawn: Tensor) -> Tensor:
    """Returns -log D(real) - log(1 - D(drawn)), D being the sigmoid of the logits."""
    return F.softplus(-real).mean() + F.softplus(drawn).mean()


def _minimax(drawn: Tensor) -> Tensor:
    """Returns log(1 - D(drawn))."""
    return -F.softplus(drawn).mean()


def _non_saturating(drawn: Tensor) -> Tensor:
    """Returns -log D(drawn), whose gradient does not vanish where the discriminator is sure."""
    return F.softplus(-drawn).mean()


def _margins(real: Tensor, drawn: Tensor) -> Tensor:
    """Returns max(0, 1 - real) + max(0, 1 + drawn)."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + drawn).mean()


def _difference(real: Tensor, drawn: Tensor) -> Tensor:
    """Returns drawn - real, the negative of what the Wasserstein distance is the largest value of."""
    return drawn.mean() - real.mean()


def _raised(drawn: Tensor) -> Tensor:
    return -drawn.mean()


# Goodfellow et al. 2014 (both), Lim and Ye 2017, Arjovsky et al. 2017; the last wants `gradient_penalty` with it.
ADVERSARIAL: Mapping[str, AdversarialLoss] = {
    "minimax": AdversarialLoss(_cross_entropy, _minimax),
    "non_saturating": AdversarialLoss(_cross_entropy, _non_saturating),
    "hinge": AdversarialLoss(_margins, _raised),
    "wasserstein": AdversarialLoss(_difference, _raised),
}


def relativistic_average(higher: Tensor, lower: Tensor) -> Tensor:
    """Returns -log s(higher - mean of lower) - log(1 - s(lower - mean of higher)) of logits [N], s being the sigmoid.

    The discriminator minimises it with the real images' logits as the higher ones, the generator with the drawn ones'.

    Source: Jolicoeur-Martineau, "The relativistic discriminator", ICLR 2019; as in ESRGAN.
    """
    return F.softplus(lower.mean() - higher).mean() + F.softplus(lower - higher.mean()).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, drawn: Tensor, mix: Tensor) -> Tensor:
    """Returns the mean of (|gradient of the critic| - 1)**2 at points between real and drawn images [N, C, H, W].

    `mix` [N] in 0..1 says how far towards the drawn ones.

    Source: Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017.
    """
    between = torch.lerp(real, drawn, mix[:, None, None, None])
    return (_slopes(critic, between).sqrt() - 1.0).square().mean()


def real_gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Returns half the mean of |gradient of the critic|**2 at real images [N, C, H, W], called R1.

    Source: Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018.
    """
    return 0.5 * _slopes(critic, real).mean()


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Returns the KL divergence in nats of a Gaussian [N, Z] from the standard one, summed over Z, averaged over N."""
    return 0.5 * (log_variance.exp() + mean.square() - 1.0 - log_variance).sum(1).mean()


def reconstruction(logits: Tensor, image: Tensor) -> Tensor:
    """Returns the cross entropy in nats of Bernoulli pixels, summed over an image, averaged over the batch."""
    return F.binary_cross_entropy_with_logits(logits, image, reduction="none").flatten(1).sum(1).mean()


def _slopes(critic: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Returns the squared length [N] of the critic's gradient at each image."""
    image = image.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(image).sum(), image, create_graph=True)
    return gradient.flatten(1).square().sum(1)
