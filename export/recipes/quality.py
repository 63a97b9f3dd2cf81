"""Measures generators: by a digit classifier (confidence, diversity, Fréchet distance), textures by their patches."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tilefuse.export.generators.classifier import Classifier

PATCH = 7
PATCHES = 4096
DIRECTIONS = 128


@dataclass(frozen=True)
class DigitQuality:
    """What a classifier says of a set of digits.

    `confidence` is the mean probability of the likeliest class, `entropy` that of the distribution of predicted
    classes in nats (log 10 = 2.303 where all ten are drawn equally often), `frechet` the Fréchet distance of the
    classifier's features from those of held-out digits, and `accuracy` the share classified as labelled (None without
    labels).
    """

    confidence: float
    entropy: float
    frechet: float
    accuracy: float | None = None


def digit_quality(
    classifier: Classifier, images: Tensor, reference: Tensor, labels: Tensor | None = None
) -> DigitQuality:
    """Compares digits [N, 1, 28, 28] in 0..1, with the labels [N] they were asked for, with a reference set of such."""
    with torch.inference_mode():
        features = classifier.features(images)
        chances = classifier.fc3(features).softmax(1)
        distance = frechet_distance(features, classifier.features(reference))
    predicted = chances.argmax(1)
    shares = torch.bincount(predicted, minlength=chances.shape[1]).double() / len(images)
    entropy = -torch.xlogy(shares, shares).sum().item()
    accuracy = None if labels is None else (predicted == labels).double().mean().item()
    return DigitQuality(chances.amax(1).mean().item(), entropy, distance, accuracy)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Returns |m1 - m2|**2 + tr(C1 + C2 - 2 (C1 C2)**0.5) of the Gaussians fitted to two sets of features [N, F].

    Source: Dowson and Landau, 1982; Heusel et al., "GANs Trained by a Two Time-Scale Update Rule ...", NeurIPS 2017.
    """
    first, second = first.double(), second.double()
    covariances = torch.cov(first.T), torch.cov(second.T)
    # The eigenvalues of the product of two covariances are real and not negative but for rounding.
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp_min(0.0).sqrt().sum()
    means = (first.mean(0) - second.mean(0)).square().sum()
    spreads = covariances[0].trace() + covariances[1].trace()
    return float(means + spreads - 2.0 * roots)


def patch_distance(images: Tensor, reference: Tensor, seed: int = 0) -> float:
    """Returns the sliced Wasserstein distance of the 7x7 patches of two sets of images [N, C, H, W] in 0..1.

    The mean over random directions of the mean distance between the sorted projections, times 1000, averaged over the
    sizes of the pictures and of their halves down to 16 pixels. 0 means alike.

    Source: Karras et al., "Progressive Growing of GANs ...", ICLR 2018, section 5 (there on a Laplacian pyramid).
    """
    generator = torch.Generator().manual_seed(seed)
    distances = []
    while min(images.shape[2:]) >= 16:
        size = images.shape[1] * PATCH * PATCH
        directions = F.normalize(torch.randn(size, DIRECTIONS, generator=generator), dim=0)
        projected = [(_patches(side, generator) @ directions).sort(0).values for side in (images, reference)]
        distances.append((projected[0] - projected[1]).abs().mean().item() / math.sqrt(size))
        images, reference = F.avg_pool2d(images, 2), F.avg_pool2d(reference, 2)
    return 1000.0 * sum(distances) / len(distances)


def _patches(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    limits = (count, height - PATCH + 1, width - PATCH + 1)
    which, top, left = (torch.randint(limit, (PATCHES,), generator=generator) for limit in limits)
    offsets = torch.arange(PATCH)
    rows, columns = (top[:, None] + offsets)[:, :, None], (left[:, None] + offsets)[:, None, :]
    # Indices beside the sliced channels come first: [patches, 7, 7, C].
    return images[which[:, None, None], :, rows, columns].flatten(1)
