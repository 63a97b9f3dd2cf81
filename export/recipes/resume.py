"""What a training run keeps between steps, and the file a killed run goes on from."""

import json
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from tilefuse.errors import ModelError
from tilefuse.export.recipes.registry import Recipe
from tilefuse.export.recipes.starts import start_as_interpolation

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Trained:
    """A network and its optimiser."""

    network: nn.Module
    optimiser: torch.optim.Adam


@dataclass(frozen=True)
class State(Trained):
    """The network that is trained, its optimiser, the running average of its weights, and what it is trained against.

    `critic` is None for recipes without an adversarial stage.
    """

    average: nn.Module
    critic: Trained | None


def new_state(recipe: Recipe, seed: int, device: torch.device) -> State:
    """Builds the networks with weights drawn from `seed`, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = recipe.build()
        start_as_interpolation(network)
        network.to(device)
        critic = None
        if recipe.adversarial is not None:
            discriminator = recipe.adversarial.build(recipe.scale * recipe.patch).to(device)
            rate = recipe.adversarial.learning_rate
            critic = Trained(discriminator, torch.optim.Adam(discriminator.parameters(), lr=rate, betas=(0.9, 0.99)))
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
    return State(network, optimiser, deepcopy(network).requires_grad_(False).eval(), critic)


def save_state(path: Path, state: State, step: int, identity: str) -> None:
    """Writes the state after `step` steps to a safetensors file at `path`, whole or not at all."""
    tensors = {f"average/{key}": value for key, value in state.average.state_dict().items()}
    for name, trained in _trained(state):
        tensors |= {f"{name}/weight/{key}": value for key, value in trained.network.state_dict().items()}
        for key, weight in trained.network.named_parameters():
            # An optimiser that has not stepped yet has no moments.
            tensors |= {f"{name}/{part}/{key}": value for part, value in trained.optimiser.state[weight].items()}
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(tensors, metadata={"progress": json.dumps({"step": step}), "identity": identity}))
    os.replace(partial, path)


def restore_state(path: Path, state: State, identity: str) -> int:
    """Fills `state` from the file and returns how many steps it had taken; raises ModelError for another run's file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no readable training state ({error}); delete it to start anew") from error
    if metadata.get("identity") != identity:
        raise ModelError(
            f"{path} belongs to a run with another recipe, seed or number of steps; delete it to start anew"
        )
    state.average.load_state_dict(_under(tensors, "average/"))
    for name, trained in _trained(state):
        trained.network.load_state_dict(_under(tensors, f"{name}/weight/"))
        moments = {part: _under(tensors, f"{name}/{part}/") for part in MOMENTS}
        for key, weight in trained.network.named_parameters():
            if key in moments["step"]:
                trained.optimiser.state[weight] = {
                    part: found[key] if part == "step" else found[key].to(weight.device)
                    for part, found in moments.items()
                }
    return int(json.loads(metadata["progress"])["step"])


def _trained(state: State) -> Iterator[tuple[str, Trained]]:
    yield "network", state
    if state.critic is not None:
        yield "critic", state.critic


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
