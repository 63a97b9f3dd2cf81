"""Which architecture a state dict is of, and the network built from it."""

import json
import re
from collections.abc import Mapping
from math import isclose
from typing import Any

import torch
from torch import nn

from tilefuse.errors import ModelError
from tilefuse.export import foreign
from tilefuse.export.descriptor import Architecture, Descriptor, MisfitError, Tensors
from tilefuse.export.generators import (
    autoencoder,
    cgan,
    classifier,
    dcgan,
    edsr,
    fsrcnn,
    gan,
    pggan,
    restoration,
    rrdbnet,
    span,
    srresnet,
    stylenet,
    subpixel,
    vae,
)

# One line an architecture. Their detections exclude each other, so the order does not matter.
ARCHITECTURES: tuple[Architecture, ...] = (
    subpixel.ESPCN_ARCHITECTURE,
    subpixel.COMPACT_ARCHITECTURE,
    rrdbnet.ARCHITECTURE,
    srresnet.ARCHITECTURE,
    srresnet.MODIFIED,
    edsr.ARCHITECTURE,
    fsrcnn.ARCHITECTURE,
    span.ARCHITECTURE,
    gan.ARCHITECTURE,
    dcgan.ARCHITECTURE,
    dcgan.PROJECTED,
    cgan.ARCHITECTURE,
    vae.ARCHITECTURE,
    pggan.ARCHITECTURE,
    classifier.ARCHITECTURE,
    restoration.ARCHITECTURE,
    stylenet.ARCHITECTURE,
    autoencoder.ARCHITECTURE,
)

_COUNTER = ".num_batches_tracked"


def infer(tensors: Tensors, metadata: Mapping[str, str] | None = None, *, name: str = "") -> Descriptor:
    """Tells the architecture and hyper-parameters of a state dict from its key names and shapes.

    What no key or shape says (the scale of an FSRCNN, the residual scale of an EDSR) is taken from `metadata`, the
    header of a safetensors file, or, for the scale, from `name`, the file's name. Raises ModelError when nothing fits,
    naming the nearest architecture and the keys missing or left over, and when the metadata contradicts the tensors.
    """
    metadata = metadata or {}
    empty = next((key for key, tensor in tensors.items() if tensor.numel() == 0), None)
    if empty is not None:
        raise ModelError(f"{empty} has no elements (shape {list(tensors[empty].shape)})")
    try:
        descriptor = _native(tensors, _hints(metadata, name))
    except MisfitError as error:
        found = foreign.describe(tensors)
        if isinstance(found, str):
            raise ModelError(f"{error}; {found}") from error
        descriptor = found
    _check_metadata(descriptor, metadata)
    return descriptor


def build(descriptor: Descriptor, tensors: Tensors) -> nn.Module:
    """Builds the network of `descriptor` with the weights of `tensors`, in evaluation mode and without gradients.

    The module shares memory with the tensors wherever nothing had to be folded. Raises ModelError when they do not fit.
    """
    if descriptor.architecture.startswith(foreign.PREFIX):
        return foreign.build(tensors)
    architecture = next((a for a in ARCHITECTURES if a.name == descriptor.architecture), None)
    if architecture is None:
        raise ModelError(f"no architecture is called {descriptor.architecture!r}; {_names()} are")
    module, weights = _fit(architecture, architecture.convert(tensors), descriptor)
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)


def _native(tensors: Tensors, hints: Mapping[str, Any]) -> Descriptor:
    architecture = next((a for a in ARCHITECTURES if a.detect(tensors)), None)
    if architecture is None:
        nearest = max(ARCHITECTURES, key=lambda a: _similarity(_example_keys(a), tensors.keys()))
        raise MisfitError(
            f"the state dict is of no known architecture; the nearest is {nearest.name}{_difference(nearest, tensors)}"
        )
    converted = tensors
    try:
        converted = architecture.convert(tensors)
        descriptor = architecture.describe(converted, hints)
    except MisfitError as error:
        difference = _difference(architecture, converted)
        raise MisfitError(f"the state dict looks like {architecture.name}, but {error}{difference}") from error
    _fit(architecture, converted, descriptor)
    return descriptor


def _fit(
    architecture: Architecture, converted: Tensors, descriptor: Descriptor
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Makes the module without memory for weights, and checks that the weights are exactly the ones it takes."""
    try:
        with torch.device("meta"):
            module = architecture.module(**descriptor.hyperparameters)
    except (RuntimeError, ValueError, OverflowError, TypeError) as error:
        raise MisfitError(f"{architecture.name} can't be made with {descriptor.hyperparameters}: {error}") from error
    expected = module.state_dict()
    weights = {key: tensor for key, tensor in converted.items() if key not in architecture.consumed}
    # Networks saved before PyTorch counted batches lack the counters, and inference never reads them.
    weights |= {key: torch.zeros((), dtype=torch.int64) for key in expected if key.endswith(_COUNTER)}
    missing, left = [k for k in expected if k not in weights], [k for k in weights if k not in expected]
    if missing or left:
        raise MisfitError(f"the state dict looks like {architecture.name}{_listed(missing, left)}")
    integers = [k for k, t in weights.items() if not t.is_floating_point() and not k.endswith(_COUNTER)]
    if integers:
        raise MisfitError(f"{integers[0]} is {weights[integers[0]].dtype}, expected floating-point weights")
    wrong = [key for key, tensor in weights.items() if tensor.shape != expected[key].shape]
    if wrong:
        key = wrong[0]
        raise MisfitError(
            f"the state dict looks like {architecture.name}, but {len(wrong)} of its shapes do not fit: "
            f"{key} is {list(weights[key].shape)}, expected {list(expected[key].shape)}"
        )
    return module, weights


def _hints(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    hints = _hyperparameters(metadata)
    if re.fullmatch(r"\d{1,3}", metadata.get("scale", "")):
        hints["scale"] = int(metadata["scale"])
    named = {int(a or b) for a, b in re.findall(r"(?<![a-z0-9])(?:x(\d)|(\d)x)(?![a-z0-9])", name.lower())}
    if len(named) == 1:
        hints.setdefault("scale", named.pop())
    return hints


def _hyperparameters(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        parsed = json.loads(metadata.get("hyper_parameters", "{}"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the file's metadata hyper_parameters is not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise ModelError(f"the file's metadata hyper_parameters is a JSON {type(parsed).__name__}, expected an object")
    return parsed


def _check_metadata(descriptor: Descriptor, metadata: Mapping[str, str]) -> None:
    """Raises ModelError when the metadata says something else than the tensors; names it does not know say nothing."""
    claimed = metadata.get("architecture", "")
    known = {a.name.casefold() for a in ARCHITECTURES}
    if claimed.casefold() in known and claimed.casefold() != descriptor.architecture.casefold():
        raise ModelError(f"the file's metadata says {claimed}, but its tensors are of {descriptor.architecture}")
    claims = list(_hyperparameters(metadata).items())
    if re.fullmatch(r"\d{1,3}", metadata.get("scale", "")):
        claims.append(("scale", int(metadata["scale"])))
    for key, value in claims:
        found = descriptor.scale if key == "scale" else descriptor.hyperparameters.get(key)
        if found is not None and not _same(value, found):
            raise ModelError(f"the file's metadata says {key} = {value!r:.80}, but its tensors say {key} = {found}")


def _same(claimed: Any, found: Any) -> bool:
    if isinstance(found, tuple) and isinstance(claimed, list | tuple):
        return len(claimed) == len(found) and all(map(_same, claimed, found))
    if isinstance(found, float) and isinstance(claimed, int | float):
        return abs(claimed) < 1e9 and isclose(claimed, found, rel_tol=1e-6)
    return bool(claimed == found)


def _names() -> str:
    return ", ".join(sorted(a.name for a in ARCHITECTURES))


def _example_keys(architecture: Architecture) -> list[str]:
    with torch.device("meta"):
        return list(architecture.module(**architecture.example).state_dict())


def _pattern(key: str) -> str:
    return re.sub(r"\d+", "0", key)


def _similarity(expected: list[str], keys: Any) -> float:
    """Compares key names with their numbers left out; parts of names decide where no whole name is shared."""

    def overlap(a: set[str], b: set[str]) -> float:
        return len(a & b) / max(1, len(a | b))

    names = {_pattern(key) for key in expected}, {_pattern(key) for key in keys}
    parts = ({part for name in side for part in name.split(".")} for side in names)
    return overlap(*names) + 0.01 * overlap(*parts)


def _difference(architecture: Architecture, tensors: Tensors) -> str:
    expected = _example_keys(architecture)
    theirs, ours = {_pattern(key) for key in tensors}, {_pattern(key) for key in expected}
    missing = [key for key in expected if _pattern(key) not in theirs]
    left = [key for key in tensors if _pattern(key) not in ours and key not in architecture.consumed]
    return _listed(missing, left)


def _listed(missing: list[str], left: list[str]) -> str:
    text = ""
    for what, keys in (("missing", missing), ("left over", left)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            text += f"; {what}: {', '.join(key[:80] for key in keys[:3])}{more}"
    return text
