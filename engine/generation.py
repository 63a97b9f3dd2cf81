"""Draw images from latent vectors: GAN generators and VAE decoders, conditional ones by label."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.backends.base import Session
from tilefuse.backends.pixels import is_finite, to_pixels
from tilefuse.errors import DeviceError, ModelError, UsageError
from tilefuse.model import Model

# Drawn at once; one session serves every full batch.
BATCH = 64


def generate(
    model: Model, session: Callable[[int], Session], count: int, *, seed: int, label: int | None
) -> NDArray[np.uint8]:
    """Draw `count` images from standard normal latents, the same for the same seed.

    `session` gives a compiled session for a number of images. Without `label`, a conditional model draws its classes
    in turn. Returns uint8 [count, H, W, C].

    Raises:
        ModelError: the network takes no latent.
        UsageError: the count is not positive, or there is no such label.
    """
    if count < 1:
        raise UsageError(f"the number of images is {count}; draw at least 1")
    return draw(model, session, latent_inputs(model, count, seed, label))


def interpolate(
    model: Model, session: Callable[[int], Session], seeds: tuple[int, int], count: int, *, label: int | None
) -> NDArray[np.uint8]:
    """Draw `count` images from latents between those of two seeds, both ends included.

    The first is what `generate` draws first from `seeds[0]`, the last what it draws first from `seeds[1]`. Latents go
    along the great circle between the ends, where those of the trained length lie. Returns uint8 [count, H, W, C].

    Raises:
        ModelError: the network takes no latent.
        UsageError: fewer than 2 images, or no label, or none of its labels, for a conditional model.

    Source: White, "Sampling Generative Networks", 2016 (slerp).
    """
    if count < 2:
        raise UsageError(f"{count} images can't lead from one seed to another; draw at least 2")
    ends = [latent_inputs(model, 1, seed, label) for seed in seeds]
    if len(ends[0]) > 1 and label is None:
        raise UsageError(f"{model.name} draws by label; say which label to interpolate in")
    shares = torch.linspace(0.0, 1.0, count)
    latent = slerp(ends[0][0], ends[1][0], shares)
    return draw(model, session, [latent, *(extra.expand(count, -1) for extra in ends[0][1:])])


def slerp(first: Tensor, last: Tensor, shares: Tensor) -> Tensor:
    """Go from one latent [1, ...] to another along the great circle between their directions: [count, ...]."""
    a, b = first.flatten().double(), last.flatten().double()
    cosine = torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(1e-12)
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    share = shares.double()[:, None]
    # Along one direction the circle is a point, and the chord is the way.
    if angle.sin() < 1e-6:
        between = (1.0 - share) * a + share * b
    else:
        between = (torch.sin((1.0 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()
    return between.float().reshape(-1, *first.shape[1:])


def draw(model: Model, session: Callable[[int], Session], inputs: list[Tensor]) -> NDArray[np.uint8]:
    """Run the inputs in batches and return levels [count, H, W, C]."""
    low, high = model.value_range
    drawn = []
    for start in range(0, inputs[0].shape[0], BATCH):
        part = [tensor[start : start + BATCH].contiguous() for tensor in inputs]
        result = session(part[0].shape[0]).run(*part)[0]
        if not is_finite(result):
            raise DeviceError(f"{model.name} drew values that are not finite from images {start} on")
        drawn.append(to_pixels(result, np.dtype(np.uint8), low, high))
    return drawn[0] if len(drawn) == 1 else np.concatenate(drawn)


def contact_sheet(images: NDArray[np.uint8], gap_px: int = 2, columns: int | None = None) -> NDArray[np.uint8]:
    """Lay images [N, H, W, C] out as a grid [H', W', C] on white, near-square unless `columns` says how wide."""
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    shape = (rows * (height + gap_px) + gap_px, columns * (width + gap_px) + gap_px, channels)
    sheet = np.full(shape, 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (k * (edge + gap_px) + gap_px for k, edge in zip(divmod(i, columns), (height, width), strict=True))
        sheet[y : y + height, x : x + width] = image
    return sheet


def latent_inputs(model: Model, count: int, seed: int, label: int | None) -> list[Tensor]:
    """Draw the inputs of a generator: standard normal latents and, of a conditional one, labels in one-hot form."""
    graph = model.graph
    if graph is None or graph.inputs[0].name != "latent":
        raise ModelError(f"{model.name} takes no latent vector: it can't draw images. Run it on an image instead")
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn([count, *(size or 1 for size in graph.inputs[0].shape[1:])], generator=generator)
    if len(graph.inputs) == 1:
        if label is not None:
            raise UsageError(f"{model.name} knows no labels; leave the label out")
        return [latent]
    classes = graph.inputs[1].shape[1] or 1
    if label is not None and not 0 <= label < classes:
        raise UsageError(f"label {label} is none of {model.name}'s; give one of 0 to {classes - 1}")
    chosen = torch.arange(count) % classes if label is None else torch.full((count,), label)
    return [latent, torch.nn.functional.one_hot(chosen, classes).float()]
