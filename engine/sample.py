"""A picture to measure with where no photograph is at hand: shading, edges and grain, as photographs have them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_DISCS = 24


def sample_picture(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Draw discs of many sizes over a gradient, with a little noise: uint8 [H, W, C], the same for the same seed."""
    rng = np.random.default_rng(seed)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    start, stop = rng.uniform(40, 215, (2, channels)).astype(np.float32)
    picture = start + (stop - start) * (0.6 * x + 0.4 * y)
    aspect = width / height
    for _ in range(_DISCS):
        centre_y, centre_x = rng.uniform(0, 1, 2)
        radius = 0.02 + 0.25 * rng.random() ** 2
        inside = (y - centre_y) ** 2 + ((x - centre_x) * aspect) ** 2 < radius**2
        colour = rng.uniform(0, 255, channels).astype(np.float32)
        picture = np.where(inside, colour * (0.8 + 0.2 * x), picture)
    picture += rng.normal(0, 2, picture.shape).astype(np.float32)
    levels: NDArray[np.uint8] = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return levels
