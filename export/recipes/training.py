"""Trains a recipe: Adam, cosine schedule, averaged weights, a checkpoint that a killed run resumes from."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from tilefuse.errors import ModelError, UsageError
from tilefuse.export.recipes.adversarial_stage import train_critic, unlikeness
from tilefuse.export.recipes.dataset import build_pool
from tilefuse.export.recipes.evaluation import Evaluation, evaluate
from tilefuse.export.recipes.loop import update_average
from tilefuse.export.recipes.photographs import VALIDATION
from tilefuse.export.recipes.registry import Recipe
from tilefuse.export.recipes.resume import State, new_state, restore_state, save_state
from tilefuse.export.recipes.weights_file import write_weights

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class TrainingStep:
    """What one step did; `validation_db`, the gain over bicubic on validation photographs, comes with checkpoints."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    validation_db: float | None

    @property
    def losses(self) -> Mapping[str, float]:
        """The loss by name."""
        return {"loss": self.loss}

    @property
    def validation(self) -> Mapping[str, float]:
        """The validation gain by name, where there is one."""
        return {} if self.validation_db is None else {"gain_db": self.validation_db}


@dataclass(frozen=True)
class TrainingReport:
    """What a run produced: the file, the last loss, the seconds it took and the scores on the held-out photographs."""

    recipe: str
    output: Path
    steps: int
    seed: int
    parameters: int
    loss: float
    seconds: float
    evaluation: Evaluation

    @property
    def quality(self) -> Mapping[str, float]:
        """The mean gain by name."""
        return {"gain_db": self.evaluation.gain_db}


def train_recipe(
    recipe: Recipe,
    output: Path,
    *,
    device: torch.device,
    steps: int | None = None,
    seed: int = 0,
    resume: bool = False,
    on_step: Callable[[TrainingStep], None] | None = None,
    json_log: str | os.PathLike[str] | None = None,
) -> TrainingReport:
    """Trains a recipe that need not be registered; see `tilefuse.export.recipes.train`."""
    began = time.monotonic()
    steps = recipe.steps if steps is None else steps
    if steps < 1:
        raise UsageError(f"steps must be at least 1, not {steps}")
    state_path = output.with_name(output.name + ".resume")
    identity = json.dumps({"recipe": asdict(recipe), "steps": steps, "seed": seed}, sort_keys=True)
    state = new_state(recipe, seed, device)
    done = restore_state(state_path, state, identity) if resume and state_path.exists() else 0
    pool = build_pool(recipe.data, recipe.scale, recipe.patch, seed)
    loss = math.nan
    with _json_lines(json_log, append=done > 0) as log:
        for step in range(done, steps):
            batch = pool.batch(np.random.default_rng([seed, step]), recipe.batch, recipe.patch)
            loss = _advance(recipe, state, batch, step, steps)
            keep = (step + 1) % recipe.checkpoint_steps == 0 or step + 1 == steps
            gain = evaluate(state.average, recipe.scale, VALIDATION).gain_db if keep else None
            if keep:
                save_state(state_path, state, step + 1, identity)
            record = TrainingStep(step + 1, steps, loss, learning_rate(recipe, step, steps), gain)
            if log is not None:
                log.write(json.dumps(asdict(record)) + "\n")
            if on_step is not None:
                on_step(record)
    evaluation = evaluate(state.average, recipe.scale)
    write_weights(state.average, recipe, evaluation, output, steps=steps, seed=seed)
    state_path.unlink(missing_ok=True)
    parameters = sum(parameter.numel() for parameter in state.average.parameters())
    return TrainingReport(recipe.name, output, steps, seed, parameters, loss, time.monotonic() - began, evaluation)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Returns the rate of a step: a linear rise over `warmup` steps times a cosine from 1 to a hundredth.

    That of the adversarial stage falls linearly to nothing.
    """
    before = recipe.reconstruction_steps(steps)
    if recipe.adversarial is not None and step >= before:
        return recipe.adversarial.learning_rate * (steps - step) / (steps - before)
    rise = min(1.0, (step + 1) / recipe.warmup)
    return recipe.learning_rate * rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / before)))


def reconstruction_loss(recipe: Recipe, result: Tensor, target: Tensor, progress: float) -> Tensor:
    """Returns the loss of [N, 3, H, W] at `progress` in 0..1 of the run: Charbonnier's, then the squared error."""
    error = result - target
    luma = torch.einsum("nchw,c->nhw", error, torch.tensor(LUMA, device=error.device))
    share = recipe.luma_weight
    if progress < 1.0 - recipe.squared_share:
        return share * (luma * luma + 1e-6).sqrt().mean() + (1 - share) * (error * error + 1e-6).sqrt().mean()
    # Ten times the squared error has gradients about as large as Charbonnier's where the switch happens.
    return 10.0 * (share * luma.square().mean() + (1 - share) * error.square().mean())


def _advance(recipe: Recipe, state: State, batch: tuple[Tensor, Tensor], step: int, steps: int) -> float:
    device = next(state.network.parameters()).device
    low, high = (images.to(device) for images in batch)
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(recipe, step, steps)
    before = recipe.reconstruction_steps(steps)
    mixed_precision = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    with mixed_precision:
        result = state.network(low)
    result = result.float()
    if recipe.adversarial is None or state.critic is None or step < before:
        loss = reconstruction_loss(recipe, result, high, step / before)
    else:
        rate = learning_rate(recipe, step, steps)
        train_critic(recipe.adversarial, state.critic, high, result.detach(), rate, mixed_precision)
        loss = reconstruction_loss(recipe, result, high, 0.0)
        loss = loss + unlikeness(recipe.adversarial, state.critic.network, high, result, mixed_precision)
    if not torch.isfinite(loss):
        raise ModelError(f"the loss of {recipe.name} is {loss.item()} at step {step + 1}; lower the learning rate")
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimiser.step()
    update_average(state.average, state.network, recipe.average_decay, step)
    return loss.item()


@contextmanager
def _json_lines(path: str | os.PathLike[str] | None, *, append: bool) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    with open(path, "a" if append else "w", encoding="utf-8", buffering=1) as log:
        yield log
