"""Samples of a raster as the levels of a format of 8 or 16 bits."""

from __future__ import annotations

import numpy as np

from tilefuse.storage.base import Array, RasterInfo


def rounded(values: Array, info: RasterInfo, bits: int) -> Array:
    """Scale samples from the raster's range to 0..2^bits - 1, clipped and rounded."""
    target = np.dtype(f"uint{bits}")
    if values.dtype == target:
        return values
    low, high = _range(info)
    share = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    samples: Array = np.rint(share * (2**bits - 1)).astype(target)
    return samples


def on_white(colour: Array, alpha: Array, info: RasterInfo) -> Array:
    """Composite straight colour [h, w, C] with alpha [h, w, 1] on white."""
    _, high = _range(info)
    full = float(np.iinfo(alpha.dtype).max) if alpha.dtype.kind == "u" else 1.0
    share = alpha.astype(np.float32) / np.float32(full)
    blended: Array = colour * share + np.float32(high) * (1 - share)
    return blended if colour.dtype.kind == "f" else np.rint(blended).astype(colour.dtype)


def _range(info: RasterInfo) -> tuple[float, float]:
    """Return the samples that show as black and white."""
    if info.dtype.kind == "u":
        return 0.0, float(np.iinfo(info.dtype).max)
    return info.value_range or (0.0, 1.0)
