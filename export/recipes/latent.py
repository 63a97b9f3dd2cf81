"""What the recipes of latent generators and of the classifier share: data, seeds, the file they end in."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tilefuse.export.recipes.loop import Schedule, Step, Trainer, run
from tilefuse.export.recipes.tensor_file import write_tensors

TEXTURES = "brick, grass and gravel of scikit-image, tinted, and rendered dead leaves; lowest fifth held out"
DATA: Mapping[str, str] = {
    "pictures": "rendered dead leaves and photographs of scikit-image; others of its photographs held out",
    "digits": "scikit-learn's digits, enlarged from 8x8 to 28x28 by Pillow's bicubic filter; a fifth held out",
    "textures-32": f"crops of 32 pixels of {TEXTURES}",
    "textures-64": f"crops of 64 pixels of {TEXTURES}",
}


@dataclass(frozen=True)
class LatentReport:
    """What a run produced: the file, the last losses, the seconds it took and what the stored network is worth."""

    recipe: str
    output: Path
    steps: int
    seed: int
    parameters: int
    losses: Mapping[str, float]
    seconds: float
    quality: Mapping[str, float]


@dataclass(frozen=True)
class LatentRecipe(ABC):
    """How one bundled network is trained.

    `data` is a key of `DATA`, `value_range` that of the network's images. The learning rate
    falls linearly to nothing over the last half of the steps. With `half_precision` the weights are stored in fp16;
    quality is measured of what is stored.
    """

    name: str
    architecture: str
    data: str
    value_range: tuple[float, float] = (-1.0, 1.0)
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 4000
    batch: int = 64
    learning_rate: float = 1e-3
    average_decay: float = 0.995
    checkpoint_steps: int = 500
    half_precision: bool = False

    @abstractmethod
    def trainer(self, seed: int, device: torch.device) -> Trainer:
        """Makes what is trained, drawn from `seed`."""

    @abstractmethod
    def result(self, trainer: Any) -> nn.Module:
        """Gives the network to store, as the architecture's own module."""

    @abstractmethod
    def measure(self, module: nn.Module) -> Mapping[str, float]:
        """Measures a network of this recipe, on the CPU."""

    def run(
        self,
        output: Path,
        *,
        device: torch.device,
        steps: int | None = None,
        seed: int = 0,
        resume: bool = False,
        on_step: Callable[[Step], None] | None = None,
        json_log: str | os.PathLike[str] | None = None,
    ) -> LatentReport:
        """Trains and writes the network; see `tilefuse.export.recipes.train`."""
        steps = self.steps if steps is None else steps
        identity = json.dumps({"recipe": asdict(self), "steps": steps, "seed": seed}, sort_keys=True)
        schedule = Schedule(output, steps, self.checkpoint_steps, identity, resume, on_step, json_log)
        trainer = self.trainer(seed, device)
        losses, seconds = run(trainer, schedule)
        module = self.result(trainer).cpu().eval().requires_grad_(False)
        if self.half_precision:
            _round_to_half(module)
        quality = self.measure(module)
        write_tensors(output, self._stored(module), self._metadata(steps, seed, quality))
        schedule.state_path.unlink(missing_ok=True)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        return LatentReport(self.name, output, steps, seed, parameters, losses, seconds, quality)

    def _stored(self, module: nn.Module) -> dict[str, Tensor]:
        dtype = torch.float16 if self.half_precision else torch.float32
        # Inference reads no counter of batches, and the loader makes it anew.
        return {key: value.to(dtype) for key, value in module.state_dict().items() if value.is_floating_point()}

    def _metadata(self, steps: int, seed: int, quality: Mapping[str, float]) -> dict[str, str]:
        return {
            "architecture": self.architecture,
            "hyper_parameters": json.dumps(dict(self.hyper_parameters), sort_keys=True),
            "recipe": self.name,
            "data": DATA[self.data],
            "steps": str(steps),
            "seed": str(seed),
            "storage": "fp16, quality measured of the stored weights" if self.half_precision else "fp32",
            "quality": json.dumps({key: round(value, 4) for key, value in quality.items()}, sort_keys=True),
            "licence": "Apache-2.0",
        }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws from `seed` what torch draws meanwhile, leaving its global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """Sets the rate of a step: constant for half of the run, then falling linearly to nothing."""
    for group in optimiser.param_groups:
        group["lr"] = rate * min(1.0, 2.0 * (1.0 - step / steps))


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Takes one step down the gradient of the loss."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


def mixed_precision(device: torch.device) -> torch.autocast:
    """Computes in bf16 where the device has matrix units for it, that is on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _round_to_half(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
