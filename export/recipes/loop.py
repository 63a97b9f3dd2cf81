"""Runs the training of several networks at once: state that resumes, log, progress, and the finished file."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tilefuse.errors import ModelError, UsageError
from tilefuse.export.recipes.tensor_file import write_tensors


class Trainer(Protocol):
    """What a run trains: networks and their optimisers by name, and how they take a step."""

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """The networks, averages of their weights included."""

    @property
    def optimisers(self) -> Mapping[str, torch.optim.Optimizer]:
        """The optimisers."""

    def advance(self, step: int, steps: int) -> Mapping[str, float]:
        """Takes step number `step`, from 0, of `steps` and gives its losses; its chances depend on the step alone."""

    def validate(self) -> Mapping[str, float]:
        """Gives the scores to watch."""


@dataclass(frozen=True)
class Step:
    """What one step did; `validation` is empty but where a checkpoint was written."""

    step: int
    steps: int
    losses: Mapping[str, float]
    validation: Mapping[str, float]


@dataclass(frozen=True)
class Schedule:
    """How long a run is, where its file goes, and who is told: see `tilefuse.export.recipes.train`."""

    output: Path
    steps: int
    checkpoint_steps: int
    identity: str
    resume: bool = False
    on_step: Callable[[Step], None] | None = None
    json_log: str | os.PathLike[str] | None = None

    @property
    def state_path(self) -> Path:
        """The file a killed run goes on from."""
        return self.output.with_name(self.output.name + ".resume")


def run(trainer: Trainer, schedule: Schedule) -> tuple[Mapping[str, float], float]:
    """Trains to the end and returns the last losses and the seconds taken; the state file is left for `finish`.

    Raises UsageError for no steps, ModelError when a loss is not finite or the state belongs to another run.
    """
    began = time.monotonic()
    if schedule.steps < 1:
        raise UsageError(f"steps must be at least 1, not {schedule.steps}")
    resumes = schedule.resume and schedule.state_path.exists()
    done = restore_state(schedule.state_path, trainer, schedule.identity) if resumes else 0
    losses: Mapping[str, float] = {}
    with _json_lines(schedule.json_log, append=done > 0) as log:
        for step in range(done, schedule.steps):
            losses = trainer.advance(step, schedule.steps)
            broken = [name for name, value in losses.items() if not math.isfinite(value)]
            if broken:
                raise ModelError(
                    f"the loss {broken[0]} is {losses[broken[0]]} at step {step + 1}; lower the learning rate"
                )
            keep = (step + 1) % schedule.checkpoint_steps == 0 or step + 1 == schedule.steps
            validation = trainer.validate() if keep else {}
            if keep:
                save_state(schedule.state_path, trainer, step + 1, schedule.identity)
            record = Step(step + 1, schedule.steps, losses, validation)
            if log is not None:
                log.write(json.dumps(asdict(record)) + "\n")
            if schedule.on_step is not None:
                schedule.on_step(record)
    return losses, time.monotonic() - began


def save_state(path: Path, trainer: Trainer, step: int, identity: str) -> None:
    """Writes all that changes in training, after `step` steps, to `path`."""
    tensors = {f"module/{n}/{key}": value for n, m in trainer.modules.items() for key, value in m.state_dict().items()}
    for name, optimiser in trainer.optimisers.items():
        for index, moments in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{name}/{index}/{key}": value for key, value in moments.items()}
    write_tensors(path, tensors, {"step": str(step), "identity": identity})


def restore_state(path: Path, trainer: Trainer, identity: str) -> int:
    """Fills the networks and optimisers from the file and returns the steps they had taken; raises ModelError."""
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
    for name, module in trainer.modules.items():
        module.load_state_dict(_under(tensors, f"module/{name}/"))
    for name, optimiser in trainer.optimisers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, f"optimiser/{name}/").items():
            index, part = key.split("/")
            moments.setdefault(int(index), {})[part] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    return int(metadata["step"])


def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Moves the weights and statistics of `average` towards the network's, an exponential moving average.

    The average starts short, so that it does not remember the random weights of the first steps.
    """
    share = 1.0 - min(decay, (step + 1) / (step + 10))
    with torch.no_grad():
        for target, source in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            if target.is_floating_point():
                target.lerp_(source, share)
            else:
                target.copy_(source)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@contextmanager
def _json_lines(path: str | os.PathLike[str] | None, *, append: bool) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    with open(path, "a" if append else "w", encoding="utf-8", buffering=1) as log:
        yield log
