"""Pictures through a variational autoencoder: encoded to the mean of their latents, and drawn again from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tilefuse.backends import registry
from tilefuse.backends.base import Session
from tilefuse.capture import from_module, inference_mode_of
from tilefuse.errors import ModelError, UsageError
from tilefuse.fitting import fit
from tilefuse.generation import draw
from tilefuse.images import Picture
from tilefuse.machine import cpu_threads
from tilefuse.model import Model
from tilefuse.options import Options
from tilefuse.planner import input_shapes
from tilefuse.serving import choose


def reconstruct(
    model: Model, options: Options, session: Callable[[int], Session], pictures: Sequence[Picture]
) -> NDArray[np.uint8]:
    """Encode pictures of any size and draw them again, uint8 [count, H, W, C] of the network's size.

    `session` gives a compiled session of the decoder for a number of images; the encoder is compiled for this call.
    Pictures are made gray where the network wants it and resized.

    Raises:
        ModelError: the model has no encoder.
        UsageError: there are no pictures.
        BackendError: no backend can serve the encoder.
    """
    if not pictures:
        raise UsageError("no pictures to reconstruct; give at least one")
    encoder, shape = encoder_of(model)
    images = torch.cat([fit(picture, shape) for picture in pictures])
    serving = choose(encoder, options)[0]
    compiled = registry.get(serving.backend).compile(
        encoder,
        (tuple(images.shape),),
        device=serving.device,
        precision=serving.precision,
        threads=cpu_threads(),
    )
    return draw(model, session, [_means(compiled.run(images)[0])])


def encoder_of(model: Model) -> tuple[Model, tuple[int, int, int]]:
    """Return a generator's encoder as a model, and the shape [C, H, W] of the images that it takes.

    Raises:
        ModelError: the generator has none.
    """
    encoder = getattr(model.module, "encoder", None)
    if not isinstance(encoder, nn.Module) or model.graph is None or model.graph.inputs[0].name != "latent":
        raise ModelError(f"{model.name} has no encoder: it can't reconstruct an image. Use a VAE such as vae-digits")
    drawn = model.graph.shapes(*input_shapes(model.graph, 1, (0, 0)))[model.graph.outputs[0]]
    _, channels, height, width = drawn
    with inference_mode_of(encoder), torch.no_grad():
        graph = from_module(encoder, torch.rand(1, channels, height, width))
    digest = hashlib.sha256(f"{model.sha256} encoder".encode()).hexdigest()
    return Model(f"{model.name} (encoder)", digest, graph, module=encoder), (channels, height, width)


def _means(moments: Tensor) -> Tensor:
    """Take the means [N, Z] out of an encoder's moments [N, 2 * Z]."""
    return moments[:, : moments.shape[1] // 2].contiguous()
