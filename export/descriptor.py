"""What an architecture tells the loader, and what the loader learns of a checkpoint."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from torch import Tensor, nn

from tilefuse.errors import ModelError

Tensors = Mapping[str, Tensor]
Hints = Mapping[str, Any]

# Far above any published network; it keeps 2**stages and scale**2 small when a file is made to hurt.
MAX_SCALE = 16
MAX_BLOCKS = 512


class MisfitError(ModelError):
    """The tensors are not those of the architecture asked about; another one may still fit."""


@dataclass(frozen=True)
class Descriptor:
    """Describes a generator: which architecture, with which hyper-parameters, from what to what.

    `scale` is output pixels per input pixel along each axis, `value_range` that of images going in and out, `latent`
    the length of the latent vector (None for networks that take an image). `inputs` names each input of a network that
    takes no image of any size, with its shape but for the batch: `latent`, `label` (one-hot) or `image`.
    """

    architecture: str
    hyperparameters: Mapping[str, Any]
    scale: int
    in_channels: int
    out_channels: int
    tags: tuple[str, ...] = ()
    value_range: tuple[float, float] = (0.0, 1.0)
    latent: int | None = None
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def unchanged(tensors: Tensors) -> Tensors:
    """Returns the tensors under the names they have."""
    return tensors


@dataclass(frozen=True)
class Architecture:
    """One family of networks and how its checkpoints are recognised.

    `detect` looks at published key names only. `convert` renames them (and folds what is folded) to the keys of
    `module`; it leaves alone what it does not know. `describe` reads the hyper-parameters off converted names and
    shapes; what those can't say (a residual scale, a mean) it takes from the hints, then from the published default.
    `consumed` are converted keys that `describe` uses up and the module does not hold. `example` makes the smallest
    module, for its key names.
    """

    name: str
    module: Callable[..., nn.Module]
    detect: Callable[[Tensors], bool]
    describe: Callable[[Tensors, Hints], Descriptor]
    convert: Callable[[Tensors], Tensors] = unchanged
    consumed: frozenset[str] = frozenset()
    example: Mapping[str, Any] = field(default_factory=dict)


def shape_of(tensors: Tensors, key: str, dims: int = 4) -> tuple[int, ...]:
    """Returns the shape of the tensor `key`; raises MisfitError when it is missing or has not `dims` dimensions."""
    if key not in tensors:
        raise MisfitError(f"{key} is missing")
    shape = tuple(tensors[key].shape)
    if len(shape) != dims:
        raise MisfitError(f"{key} has shape {list(shape)}, expected {dims} dimensions")
    return shape


def indices_of(tensors: Tensors, prefix: str) -> list[int]:
    """Lists in order each n for which a key starts with `prefix`n and a dot; raises MisfitError for too many."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,6})\.")
    indices = sorted({int(match[1]) for key in tensors if (match := pattern.match(key))})
    if len(indices) > MAX_BLOCKS:
        raise MisfitError(f"{prefix} is followed by {len(indices)} numbers, expected {MAX_BLOCKS} at most")
    return indices


def count_of(tensors: Tensors, prefix: str) -> int:
    """Counts the blocks `prefix`0, `prefix`1, ...; raises MisfitError when one between them is missing."""
    indices = indices_of(tensors, prefix)
    for expected, index in enumerate(indices):
        if index != expected:
            raise MisfitError(f"{prefix}{expected} is missing")
    return len(indices)


def rename(tensors: Tensors, rules: Mapping[str, str]) -> dict[str, Tensor]:
    """Renames keys by the first rule (pattern to template) that fits; raises MisfitError when two names become one."""
    compiled = [(re.compile(pattern), template) for pattern, template in rules.items()]
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        new = next((m.expand(template) + key[m.end() :] for p, template in compiled if (m := p.match(key))), key)
        if new in renamed:
            raise MisfitError(f"two tensors of the file are both {new}; the file mixes naming schemes")
        renamed[new] = tensor
    return renamed


def shuffle_of(total: int, in_channels: int) -> tuple[int, int]:
    """Splits the `total` channels before a pixel shuffle into (scale, output channels).

    Only their product is in the file; as many channels out as in is tried first, then 3, 4 and 1. Raises MisfitError
    when none fits.
    """
    for channels in (in_channels, 3, 4, 1):
        scale = isqrt(total // channels)
        if channels * scale**2 == total and 1 <= scale <= MAX_SCALE:
            return scale, channels
    raise MisfitError(
        f"{total} channels before the pixel shuffle are no square times {in_channels}, 3, 4 or 1 channels"
    )


def stages_of(tensors: Tensors, keys: list[str], features: int) -> int:
    """Returns the scale of a chain of convolutions [features*r*r, features, ...], each before a pixel shuffle by r."""
    scale = 1
    for key in keys:
        total = shape_of(tensors, key)[0]
        factor = isqrt(total // features)
        if total != features * factor**2 or not 2 <= factor <= MAX_SCALE:
            raise MisfitError(f"{key} makes {total} channels of {features}, expected 4 or 9 times as many")
        scale *= factor
        if scale > MAX_SCALE:
            raise MisfitError(f"the network would scale by more than {MAX_SCALE}")
    return scale


def number_hint(hints: Hints, name: str, default: float) -> float:
    """Returns the hint `name` as a positive number, or the default; raises ModelError when it is none."""
    value = hints.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 65535:
        raise ModelError(f"{name} is {value!r:.80}, expected a positive number up to 65535")
    return float(value)


def channels_hint(hints: Hints, name: str, channels: int, default: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the hint `name` as one number a channel, or the default; raises ModelError when neither has that many."""
    value = hints.get(name, default)
    numbers = value if isinstance(value, list | tuple) else ()
    if len(numbers) != channels or not all(isinstance(n, int | float) and abs(n) <= 1 for n in numbers):
        raise ModelError(
            f"the {name} of a network for {channels} channels is not in the file; "
            f"save it as safetensors with the metadata hyper_parameters={{{name!r}: [...]}}"
        )
    return tuple(float(n) for n in numbers)
