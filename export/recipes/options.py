"""What may be chosen for a run beside its recipe: the device, and the loss between generator and discriminator."""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from tilefuse.errors import DeviceError, UsageError
from tilefuse.export.recipes.adversarial import AdversarialRecipe
from tilefuse.export.recipes.latent_recipes import LATENT_RECIPES
from tilefuse.export.recipes.losses import ADVERSARIAL

# As Gulrajani et al. 2017 set them, for the loss that means nothing without its penalty.
WASSERSTEIN = {"penalty": 10.0, "penalty_interval": 1, "critic_steps": 5}


def training_device(device: str) -> torch.device:
    """Returns the device of that name; raises UsageError for no such name and DeviceError where it can't be used."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise UsageError(f"device: {device!r} is none to train on; give cpu, cuda or cuda:N")
    found = torch.device(device)
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise DeviceError(f"{device} can't be used: torch {torch.__version__} finds {count} CUDA devices; use cpu")
    return found


def with_loss(name: str, loss: str) -> AdversarialRecipe:
    """Returns the recipe `name` with another adversarial loss, one of `losses.ADVERSARIAL`.

    `wasserstein` brings the gradient penalty and the five critic steps of WGAN-GP. Raises UsageError for a loss that is
    none, and for a recipe without latents and discriminator.
    """
    if loss not in ADVERSARIAL:
        raise UsageError(f"no adversarial loss is called {loss!r}; give {', '.join(ADVERSARIAL)}")
    recipe = LATENT_RECIPES.get(name)
    if not isinstance(recipe, AdversarialRecipe):
        able = sorted(key for key, known in LATENT_RECIPES.items() if isinstance(known, AdversarialRecipe))
        raise UsageError(f"{name} has no choice of adversarial loss; {', '.join(able)} have")
    changes: Mapping[str, float] = WASSERSTEIN if loss == "wasserstein" else {}
    return replace(recipe, loss=loss, **changes)  # type: ignore[arg-type]
