"""Small images that the image tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageCms

Array = np.ndarray[Any, np.dtype[Any]]


def noise(shape: tuple[int, ...], dtype: str) -> Array:
    """Return uniform noise over the whole range of `dtype`."""
    values = np.random.default_rng(5).random(shape)
    return values.astype(dtype) if dtype.startswith("float") else (values * (np.iinfo(dtype).max + 1)).astype(dtype)


@cache
def profile() -> bytes:
    """Return an sRGB ICC profile, the same each time (it holds the time it was made at)."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def save(path: Path, data: bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(data)
    return path
