"""Style transfer by optimisation: one picture redrawn in the style of another."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.errors import ModelError, UsageError
from tilefuse.export.recipes.style_losses import Texture, content_loss, style_loss, textures_of, total_variation

LEAST_EDGE_PX = 16
# The style is measured at no more than this, and the statistics hardly change beyond.
LARGEST_STYLE_PX = 512
LEVELS = 3
LEAST_COARSE_PX = 48
SMOOTHNESS = 1.0
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

    The pixels are optimised by Adam for the content loss plus `style_weight` times the style loss, both on random
    convolutions: first at a quarter and half the size, which is where large shapes form, then at full size. The start
    is the content with noise drawn from `seed`. Raises UsageError for pictures under 16 pixels, no steps or no positive
    weight, ModelError when the losses are not finite.

    Source: Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016; coarse to fine: Gatys
    et al., "Controlling Perceptual Factors in Neural Style Transfer", CVPR 2017.
    """
    if steps < 1:
        raise UsageError(f"steps must be at least 1, not {steps}")
    if not 0.0 < style_weight <= 1e6:
        raise UsageError(f"the style weight must be over 0 and at most 1000000, not {style_weight:g}")
    source, model = _batch(content, "content"), _shrunk(_batch(style, "style"))
    drawn = torch.randn(source.shape, generator=torch.Generator().manual_seed(seed))
    image = (source + NOISE * drawn).clamp(0.0, 1.0)
    done = 0
    for divisor, count in _levels(source, model, steps):
        task = _Task(_reduced(source, divisor), textures_of(_reduced(model, divisor)), style_weight)
        start = F.interpolate(_reduced(image, divisor) if done == 0 else image, task.source.shape[2:], mode="bilinear")

        def report(step: int, losses: tuple[Tensor, ...], done: int = done) -> None:
            if on_step is not None:
                on_step(StyleLosses(done + step, steps, *(loss.item() for loss in losses)))

        image = _optimise(task, start, count, report)
        done += count
    levels = image[0].mul(255.0).round()
    before, after = (
        StyleLosses(step, steps, *(loss.item() for loss in task.losses(candidate)))
        for step, candidate in ((0, source), (steps, levels[None] / 255.0))
    )
    return Stylised(levels.permute(1, 2, 0).to(torch.uint8).numpy(), before, after)


@dataclass(frozen=True)
class _Task:
    """What to draw at one size."""

    source: Tensor
    textures: tuple[Texture, ...]
    style_weight: float

    def losses(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gives style, content and variation."""
        return style_loss(image, self.textures), content_loss(image, self.source), total_variation(image)


def _optimise(task: _Task, start: Tensor, steps: int, report: Callable[[int, tuple[Tensor, ...]], None]) -> Tensor:
    image = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([image], LEARNING_RATE)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1.0 - 0.95 * step / steps)
        style, content, variation = task.losses(image)
        loss = content + task.style_weight * style + SMOOTHNESS * variation
        if not torch.isfinite(loss):
            raise ModelError(f"the loss is {loss.item()} at step {step + 1}; lower the style weight")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        with torch.no_grad():
            image.clamp_(0.0, 1.0)
        report(step + 1, (style, content, variation))
    return image.detach()


def _levels(source: Tensor, style: Tensor, steps: int) -> list[tuple[int, int]]:
    """Lists by how much each level divides the size, and its steps: a third for each level above the full size."""
    least = min(*source.shape[2:], *style.shape[2:])
    coarse = [2**level for level in range(LEVELS - 1, 0, -1) if least // 2**level >= LEAST_COARSE_PX]
    counts = [steps // LEVELS for _ in coarse]
    return [(d, n) for d, n in zip([*coarse, 1], [*counts, steps - sum(counts)], strict=True) if n > 0]


def _reduced(image: Tensor, divisor: int) -> Tensor:
    return F.avg_pool2d(image, divisor) if divisor > 1 else image


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
