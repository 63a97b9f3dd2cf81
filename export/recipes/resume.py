"""What a training run keeps between steps, and the file a killed run goes on from."""

import json
import os
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


@dataclass(frozen=True)
class State:
    """The network that is trained, the running average of its weights, and the optimiser."""

    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Adam


def new_state(recipe: Recipe, seed: int, device: torch.device) -> State:
    """Builds the network with weights drawn from `seed`, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = recipe.build()
        start_as_interpolation(network)
        network.to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99))
    return State(network, deepcopy(network).requires_grad_(False), optimiser)


def save_state(path: Path, state: State, step: int, identity: str) -> None:
    """Writes the state after `step` steps to a safetensors file at `path`, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    averages = dict(state.average.named_parameters())
    for key, weight in state.network.named_parameters():
        moments = state.optimiser.state[weight]
        tensors[f"weight/{key}"] = weight.detach()
        tensors[f"average/{key}"] = averages[key].detach()
        tensors[f"first/{key}"] = moments["exp_avg"]
        tensors[f"second/{key}"] = moments["exp_avg_sq"]
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
    step = int(json.loads(metadata["progress"])["step"])
    averages = dict(state.average.named_parameters())
    with torch.no_grad():
        for key, weight in state.network.named_parameters():
            weight.copy_(tensors[f"weight/{key}"])
            averages[key].copy_(tensors[f"average/{key}"])
            state.optimiser.state[weight] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"first/{key}"].to(weight.device),
                "exp_avg_sq": tensors[f"second/{key}"].to(weight.device),
            }
    return step
