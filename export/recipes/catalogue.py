"""Every recipe by name, whatever it trains."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from tilefuse.errors import UsageError
from tilefuse.export.recipes.latent_recipes import LATENT_RECIPES
from tilefuse.export.recipes.options import training_device, with_loss
from tilefuse.export.recipes.picture_recipes import PICTURE_RECIPES
from tilefuse.export.recipes.registry import RECIPES
from tilefuse.export.recipes.style_recipes import STYLE_RECIPES
from tilefuse.export.recipes.training import train_recipe
from tilefuse.images import check_writable


class StepRecord(Protocol):
    """What every kind of recipe says of a step; `validation` is empty but where a checkpoint was written."""

    @property
    def step(self) -> int:
        """The number of the step, from 1."""

    @property
    def steps(self) -> int:
        """How many there will be."""

    @property
    def losses(self) -> Mapping[str, float]:
        """The losses by name."""

    @property
    def validation(self) -> Mapping[str, float]:
        """The scores to watch by name."""


class Report(Protocol):
    """What every kind of recipe says of a finished run."""

    @property
    def recipe(self) -> str:
        """The recipe's name."""

    @property
    def output(self) -> Path:
        """The file written."""

    @property
    def steps(self) -> int:
        """How many steps were taken."""

    @property
    def parameters(self) -> int:
        """How many weights the network has."""

    @property
    def seconds(self) -> float:
        """How long it took."""

    @property
    def quality(self) -> Mapping[str, float]:
        """What the stored network measures, by name."""


class Run(Protocol):
    """Trains one recipe."""

    def __call__(
        self,
        output: Path,
        *,
        device: torch.device,
        steps: int | None = None,
        seed: int = 0,
        resume: bool = False,
        on_step: Callable[[StepRecord], None] | None = None,
        json_log: str | os.PathLike[str] | None = None,
    ) -> Report:
        """Trains to the end; see `train`."""


RUNS: Mapping[str, Run] = {
    **{name: partial(train_recipe, recipe) for name, recipe in RECIPES.items()},
    **{name: recipe.run for name, recipe in {**LATENT_RECIPES, **PICTURE_RECIPES, **STYLE_RECIPES}.items()},
}


def names() -> list[str]:
    """Lists the recipes `train` knows."""
    return sorted(RUNS)


def train(
    name: str,
    output: str | os.PathLike[str],
    *,
    device: str = "cpu",
    steps: int | None = None,
    seed: int = 0,
    resume: bool = False,
    on_step: Callable[[StepRecord], None] | None = None,
    json_log: str | os.PathLike[str] | None = None,
    loss: str | None = None,
    overwrite: bool = False,
) -> Report:
    """Trains the recipe `name` and writes weights with metadata to `output` (safetensors).

    A run keeps its state beside the output, in `<output>.resume`; `resume=True` goes on from there and ends with the
    weights that the undisturbed run would have had. `steps` replaces the recipe's own number. `on_step` is called after
    each step, and `json_log` gets one JSON line a step. With one processor and one thread count the same seed gives the
    same weights. `loss` replaces the loss between generator and discriminator: minimax, non_saturating, hinge, or
    wasserstein with its gradient penalty. `overwrite` lets the weights take the place of what stands at `output`.

    Raises UsageError for an unknown recipe, device or loss, no steps, or an output that stands or can't be written;
    DeviceError for a device that is not there; ModelError without the packages the data come from, where these are
    damaged, or when the state belongs to another run.
    """
    if name not in RUNS:
        raise UsageError(f"no recipe is called {name!r}; the recipes are {', '.join(names())}")
    run = with_loss(name, loss).run if loss is not None else RUNS[name]
    place = training_device(device)
    check_writable(output, overwrite=overwrite)
    if json_log is not None:
        check_writable(json_log, overwrite=True)
    return run(
        Path(output),
        device=place,
        steps=steps,
        seed=seed,
        resume=resume,
        on_step=on_step,
        json_log=json_log,
    )
