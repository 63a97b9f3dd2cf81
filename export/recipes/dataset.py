"""The training images of a recipe, rendered once and kept in memory, and the random patches cut from them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tilefuse.export.recipes.dead_leaves import SHORTEST_WAVE_PX, dead_leaves
from tilefuse.export.recipes.photographs import TRAINING, training_photograph


@dataclass(frozen=True)
class DataMix:
    """What a recipe trains on: `pictures` dead-leaves pictures, square, of `picture_size` pixels, and photographs.

    `photograph_share` of the patches come from the photographs. Gratings are no finer than `shortest_wave_px`.
    """

    pictures: int
    picture_size: int
    photograph_share: float
    photographs: tuple[str, ...] = TRAINING
    shortest_wave_px: float = SHORTEST_WAVE_PX


@dataclass(frozen=True)
class Pool:
    """Pairs of uint8 [H, W, 3] images, low and high resolution, with the chance of a patch coming from each."""

    pairs: tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], ...]
    chances: NDArray[np.float64]
    scale: int

    def batch(self, rng: np.random.Generator, count: int, patch: int) -> tuple[Tensor, Tensor]:
        """Cuts `count` random patches, flipped, turned and with colours swapped at random.

        Returns float32 in 0..1, [count, 3, patch, patch] and [count, 3, scale*patch, scale*patch].
        """
        low, high = [], []
        for index in rng.choice(len(self.pairs), count, p=self.chances):
            small, large = self.pairs[index]
            top = rng.integers(small.shape[0] - patch + 1)
            left = rng.integers(small.shape[1] - patch + 1)
            colours, flips = rng.permutation(3), rng.integers(0, 2, 3)
            low.append(_turn(_cut(small, top, left, patch), colours, flips))
            high.append(_turn(_cut(large, top * self.scale, left * self.scale, patch * self.scale), colours, flips))
        return _tensor(low), _tensor(high)


def build_pool(mix: DataMix, scale: int, patch: int, seed: int) -> Pool:
    """Renders the pictures, reads the photographs and shrinks them all by `scale` with Pillow's bicubic filter."""
    rendered = [
        dead_leaves([seed, index], mix.picture_size, shortest_wave_px=mix.shortest_wave_px)
        for index in range(mix.pictures)
    ]
    photographs = [training_photograph(name) for name in mix.photographs]
    pairs = [shrink(image, scale) for image in (*rendered, *photographs)]
    large_enough = np.array([min(small.shape[:2]) >= patch for small, _ in pairs])
    areas = np.array([small.shape[0] * small.shape[1] for small, _ in pairs], dtype=np.float64) * large_enough
    # The square root keeps one large photograph from being most of what photographs show.
    weights = np.sqrt(areas)
    from_photograph = np.arange(len(pairs)) >= mix.pictures
    chances = np.where(from_photograph, mix.photograph_share, 1.0 - mix.photograph_share) * weights
    for group in (from_photograph, ~from_photograph):
        if weights[group].any():
            chances[group] /= weights[group].sum()
    return Pool(tuple(pairs), chances / chances.sum(), scale)


def shrink(image: NDArray[np.uint8], scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Crops [H, W, 3] to a multiple of `scale` and returns its bicubic reduction (Pillow) and the crop."""
    height, width = image.shape[0] // scale * scale, image.shape[1] // scale * scale
    large = image[:height, :width]
    small = Image.fromarray(large).resize((width // scale, height // scale), Image.Resampling.BICUBIC)
    return np.asarray(small), large


def _cut(image: NDArray[np.uint8], top: int, left: int, edge: int) -> NDArray[np.uint8]:
    return image[top : top + edge, left : left + edge]


def _turn(patch: NDArray[np.uint8], colours: NDArray[np.int64], flips: NDArray[np.int64]) -> NDArray[np.uint8]:
    patch = patch[:, :, colours]
    patch = patch[::-1] if flips[0] else patch
    patch = patch[:, ::-1] if flips[1] else patch
    return patch.transpose(1, 0, 2) if flips[2] else patch


def _tensor(patches: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).contiguous().float().div_(255.0)
