"""Architectures this project does not have, through the optional spandrel package."""

import importlib
from typing import Any

from torch import nn

from tilefuse.errors import ModelError
from tilefuse.export.descriptor import Descriptor, Tensors

PREFIX = "spandrel:"


def describe(tensors: Tensors) -> Descriptor | str:
    """Describes the network spandrel makes of a state dict, or says in words why there is none."""
    try:
        model = _load(tensors)
    except ModelError as error:
        return str(error)
    return Descriptor(
        f"{PREFIX}{model.architecture.id}",
        {},
        scale=model.scale,
        in_channels=model.input_channels,
        out_channels=model.output_channels,
        tags=tuple(model.tags),
    )


def build(tensors: Tensors) -> nn.Module:
    """Builds the network spandrel makes of a state dict, in evaluation mode and without gradients."""
    module: nn.Module = _load(tensors).model
    return module.eval().requires_grad_(False)


def _load(tensors: Tensors) -> Any:
    try:
        spandrel = importlib.import_module("spandrel")
    except ImportError as error:
        raise ModelError("spandrel knows more architectures: pip install 'tilefuse[spandrel]'") from error
    try:
        # spandrel renames keys in place, so it gets a dict of its own.
        model = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(tensors))
    except Exception as error:  # its loaders fail on a foreign state dict with whatever comes first
        raise ModelError(f"spandrel does not know it either ({type(error).__name__})") from error
    if not isinstance(model, spandrel.ImageModelDescriptor):
        raise ModelError(f"spandrel reads it as {model.architecture.id}, which does not map one image to one image")
    return model
