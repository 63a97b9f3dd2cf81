"""Style transfer by optimisation: one picture redrawn in the style of another."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.errors import ModelError, UsageError
from tilefuse.export.recipes.style_losses import content_loss, style_loss, textures_of, total_variation

LEAST_EDGE_PX = 16
# The style is measured at no more than this, and the statistics hardly change beyond.
LARGEST_STYLE_PX = 512
SMOOTHNESS = 0.1
LEARNING_RATE = 0.04
NOISE = 0.05


@dataclass(frozen=True)
class StyleLosses:
    """The losses after `step` of `steps` steps, before their weights."""

    step: int
    steps: int
    style: float
    content: float
    variation: float


@dataclass(frozen=True)
class Stylised:
    """The picture, uint8 [H, W, 3], and the losses of the content as it was and of the result."""

    picture: NDArray[np.uint8]
    before: StyleLosses
    after: StyleLosses


def stylise(
    content: NDArray[np.uint8],
    style: NDArray[np.uint8],
    *,
    steps: int = 200,
    seed: int = 0,
    style_weight: float = 50.0,
    on_step: Callable[[StyleLosses], None] | None = None,
) -> Stylised:
    """Redraws `content` [H, W, 3] in the style of `style` [h, w, 3], both uint8.

    The pixels are optimised by Adam, from the content with noise drawn from `seed`, for the content loss plus
    `style_weight` times the style loss, both on random convolutions. Raises UsageError for pictures under 16 pixels, no
    steps or no positive weight, ModelError when the losses are not finite.

    Source: Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016.
    """
    if steps < 1:
        raise UsageError(f"steps must be at least 1, not {steps}")
    if not 0.0 < style_weight <= 1e6:
        raise UsageError(f"the style weight must be over 0 and at most 1000000, not {style_weight:g}")
    source, textures = _batch(content, "content"), textures_of(_shrunk(_batch(style, "style")))
    drawn = torch.randn(source.shape, generator=torch.Generator().manual_seed(seed))
    image = (source + NOISE * drawn).clamp(0.0, 1.0).requires_grad_(True)
    optimiser = torch.optim.Adam([image], LEARNING_RATE)

    def losses_of(candidate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return style_loss(candidate, textures), content_loss(candidate, source), total_variation(candidate)

    def record(step: int, candidate: Tensor) -> StyleLosses:
        with torch.no_grad():
            return StyleLosses(step, steps, *(loss.item() for loss in losses_of(candidate)))

    before = record(0, source)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1.0 - 0.95 * step / steps)
        own_style, own_content, variation = losses_of(image)
        loss = own_content + style_weight * own_style + SMOOTHNESS * variation
        if not torch.isfinite(loss):
            raise ModelError(f"the loss is {loss.item()} at step {step + 1}; lower the style weight")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            image.clamp_(0.0, 1.0)
        if on_step is not None:
            on_step(StyleLosses(step + 1, steps, own_style.item(), own_content.item(), variation.item()))
    levels = image.detach()[0].mul(255.0).round()
    picture = levels.permute(1, 2, 0).to(torch.uint8).numpy()
    return Stylised(picture, before, record(steps, levels[None] / 255.0))


def _batch(picture: NDArray[np.uint8], role: str) -> Tensor:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise UsageError(f"the {role} is {picture.dtype} {list(picture.shape)}, expected uint8 [H, W, 3]")
    if min(picture.shape[:2]) < LEAST_EDGE_PX:
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        raise UsageError(f"the {role} is {size} pixels; style transfer needs at least {LEAST_EDGE_PX} along each edge")
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255.0


def _shrunk(style: Tensor) -> Tensor:
    share = LARGEST_STYLE_PX / max(style.shape[2:])
    if share >= 1.0:
        return style
    size = [max(LEAST_EDGE_PX, round(edge * share)) for edge in style.shape[2:]]
    return F.interpolate(style, size, mode="bilinear", antialias=True)
