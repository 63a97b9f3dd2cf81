"""What restoration undoes: white noise, and square holes with the mask that says where."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NOISE_LEVEL = 25.0 / 255.0
HOLE_SHARE = 0.25
HOLE_EDGES_PX = (8, 32)


def add_noise(images: Tensor, rng: np.random.Generator, level: float = NOISE_LEVEL) -> Tensor:
    """Adds white Gaussian noise of deviation `level` to images [N, C, H, W]; values may leave 0..1."""
    noise = rng.standard_normal(tuple(images.shape), dtype=np.float32)
    return images + level * torch.from_numpy(noise).to(images.device)


def square_holes(height: int, width: int, rng: np.random.Generator, share: float = HOLE_SHARE) -> NDArray[np.bool_]:
    """Draws squares of 8 to 32 pixels an edge at random places until `share` of [height, width] is covered."""
    mask = np.zeros((height, width), dtype=np.bool_)
    low, high = HOLE_EDGES_PX
    while mask.mean() < share:
        edge = int(rng.integers(low, min(high, height, width) + 1))
        top, left = int(rng.integers(height - edge + 1)), int(rng.integers(width - edge + 1))
        mask[top : top + edge, left : left + edge] = True
    return mask


def cut_holes(images: Tensor, masks: Tensor) -> Tensor:
    """Joins images [N, 3, H, W], black where masks [N, 1, H, W] are 1, with their masks: [N, 4, H, W]."""
    return torch.cat([images * (1.0 - masks), masks], 1)
