"""The losses of style transfer, on features of random convolutions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tilefuse.export.recipes.random_features import RandomFeatures, random_features

LUMA = (0.299, 0.587, 0.114)
FILTERS, KERNEL_PX, SCALES = 64, 7, 4
# Content is compared where a stroke is no longer seen, and of the light alone, so that the style may choose colours.
CONTENT_SCALES = slice(1, 3)


@dataclass(frozen=True)
class Texture:
    """What one scale of a style picture measures: mean and deviation [C] of the features, Gram matrix [C, C]."""

    mean: Tensor
    deviation: Tensor
    gram: Tensor


def gram(features: Tensor) -> Tensor:
    """Returns the Gram matrices [N, C, C] of features [N, C, H, W], divided by the H * W products they sum."""
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[2]


def total_variation(images: Tensor) -> Tensor:
    """Returns the mean absolute difference of neighbouring pixels of [N, C, H, W], along rows and columns."""
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


def textures_of(style: Tensor) -> tuple[Texture, ...]:
    """Measures a style picture [1, 3, H, W] in 0..1, one texture a scale."""
    textures = []
    for features in style_features()(style):
        mean, deviation = features.mean((0, 2, 3)), features.std((0, 2, 3))
        # A feature that the style hardly shows would otherwise be all that counts.
        deviation = deviation.clamp_min(0.3 * deviation.mean().item())
        textures.append(Texture(mean, deviation, gram(_standardised(features, mean, deviation))[0]))
    return tuple(textures)


def style_loss(images: Tensor, textures: tuple[Texture, ...]) -> Tensor:
    """Returns the mean squared difference of the Gram matrices of [N, 3, H, W] and of the style, over the scales.

    Each feature counts from its mean and in deviations of the style picture, so that faint ones matter as much as
    strong ones; the differences of the means are added, which such matrices hardly tell.

    Source: Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016; the shift: Novak and
    Nikulin, "Improving the Neural Algorithm of Artistic Style", 2016.
    """
    losses = []
    for features, texture in zip(style_features()(images), textures, strict=False):
        scaled = _standardised(features, texture.mean, texture.deviation)
        losses.append((gram(scaled) - texture.gram).square().mean() + scaled.mean((2, 3)).square().mean())
    return torch.stack(losses).mean()


def content_loss(images: Tensor, contents: Tensor) -> Tensor:
    """Returns the mean squared difference of features of the luma of [N, 3, H, W] and of the content, in hundredths."""
    ours, theirs = (_content_features(side) for side in (images, contents))
    losses = [(own - wanted).square().mean() for own, wanted in zip(ours, theirs, strict=True)]
    return 100.0 * torch.stack(losses).mean()


def style_features() -> RandomFeatures:
    """Gives the bank that describes style."""
    return random_features(FILTERS, KERNEL_PX, SCALES)


def _content_features(images: Tensor) -> Sequence[Tensor]:
    luma = torch.einsum("nchw,c->nhw", images, torch.tensor(LUMA, device=images.device))[:, None]
    bank = random_features(FILTERS // 2, KERNEL_PX, SCALES, 1)
    return bank(luma)[CONTENT_SCALES]


def _standardised(features: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return (features - mean[:, None, None]) / deviation[:, None, None]
