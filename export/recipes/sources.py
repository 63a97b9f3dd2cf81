"""What generators are trained on and measured by: one interface for digits and textures."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tilefuse.errors import ModelError
from tilefuse.export.checkpoints import load_bundled
from tilefuse.export.generators.cgan import one_hot
from tilefuse.export.generators.classifier import Classifier
from tilefuse.export.recipes.digits import Digits, load_digits
from tilefuse.export.recipes.quality import DigitQuality, digit_quality, patch_distance
from tilefuse.export.recipes.textures import Textures, load_textures

SAMPLES = {"digits": 1000, "textures-32": 256, "textures-64": 256}
CLASSIFIER = "cnn-digits"

Range = tuple[float, float]


class Source(Protocol):
    """Images to train on, in the value range of the network; `classes` is 0 where it is told no label."""

    @property
    def classes(self) -> int:
        """How many labels there are."""

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor | None]:
        """Draws images [count, C, H, W] and their labels [count]."""


@dataclass(frozen=True)
class DigitSource:
    """Training digits, in the given value range."""

    digits: Digits
    value_range: Range
    classes: int

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor | None]:
        """Draws digits with replacement."""
        chosen = torch.from_numpy(rng.integers(len(self.digits.train.labels), size=count))
        low, high = self.value_range
        labels = self.digits.train.labels[chosen] if self.classes else None
        return low + (high - low) * self.digits.train.images[chosen], labels


@dataclass(frozen=True)
class TextureSource:
    """Crops of textures, in the given value range."""

    textures: Textures
    value_range: Range
    classes: int = 0

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor | None]:
        """Cuts random crops."""
        low, high = self.value_range
        return low + (high - low) * self.textures.batch(rng, count), None


def source_of(data: str, value_range: Range, classes: int = 0) -> Source:
    """Reads the training images of `digits`, `textures-32` or `textures-64`."""
    if data == "digits":
        return DigitSource(load_digits(), value_range, classes)
    return TextureSource(load_textures(_edge(data)), value_range)


def draw_latents(generator: nn.Module, count: int, rng: np.random.Generator) -> Tensor:
    """Draws standard normal latents [count, ...] of the shape that the generator takes."""
    shape = generator.latent_shape
    return torch.from_numpy(rng.standard_normal((count, *shape), dtype=np.float32))  # type: ignore[misc]


def draw_images(generator: nn.Module, count: int, value_range: Range, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """Draws `count` images in 0..1 and, from a conditional generator, the labels they were asked for, equally often."""
    latents = draw_latents(generator, count, np.random.default_rng(seed))
    low, high = value_range
    classes = getattr(generator, "classes", 0)
    labels = torch.arange(count) % classes if classes else None
    with torch.inference_mode():
        images = generator(latents) if labels is None else generator(latents, one_hot(labels, classes))
    return ((images - low) / (high - low)).clamp(0.0, 1.0), labels


def measure_generator(generator: nn.Module, data: str, value_range: Range) -> Mapping[str, float]:
    """Gives the scores of `compare_generator` under one name each: `real_` and `noise_` before those of others."""
    return {
        ("" if of == "model" else f"{of}_") + name: value
        for of, scores in compare_generator(generator, data, value_range).items()
        for name, value in scores.items()
    }


def compare_generator(
    generator: nn.Module, data: str, value_range: Range
) -> Mapping[Literal["model", "real", "noise"], Mapping[str, float]]:
    """Measures images of fixed latents, and beside them training images (`real`) and uniform noise.

    All are compared with held-out images: digits by the bundled classifier, textures by their patches.
    """
    count = SAMPLES[data]
    images, labels = draw_images(generator, count, value_range)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    if data == "digits":
        digits = load_digits()
        reference = digits.held_out.images
        qualities: dict[Literal["model", "real", "noise"], DigitQuality] = {
            "model": digit_quality(classifier(), images, reference, labels),
            "real": digit_quality(classifier(), digits.train.images, reference),
            "noise": digit_quality(classifier(), noise, reference),
        }
        return {
            of: {key: value for key, value in asdict(quality).items() if value is not None}
            for of, quality in qualities.items()
        }
    real, held_out = (
        load_textures(_edge(data), held_out=held_out).batch(np.random.default_rng(0), count)
        for held_out in (False, True)
    )
    return {
        "model": {"patch_distance": patch_distance(images, held_out)},
        "real": {"patch_distance": patch_distance(real, held_out)},
        "noise": {"patch_distance": patch_distance(noise, held_out)},
    }


@cache
def classifier() -> Classifier:
    """Loads the bundled classifier of digits; raises ModelError when it is none."""
    module, _ = load_bundled(CLASSIFIER)
    if not isinstance(module, Classifier):
        raise ModelError(
            f"the bundled {CLASSIFIER} is a {type(module).__name__}, expected a Classifier; train it again"
        )
    return module


def _edge(data: str) -> int:
    return int(data.removeprefix("textures-"))
