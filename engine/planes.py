"""Pictures as a network's batches and back: channels, range, alpha, rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tilefuse.errors import BackendError, ModelError
from tilefuse.picture import Picture
from tilefuse.transparency import bleed, keep_flat, varies

Array = np.ndarray[Any, np.dtype[Any]]

_STRIP_VALUES = 1 << 22


def to_planes(picture: Picture, channels: int) -> Array:
    """Return a float32 batch [N, channels, H, W] in 0..1 for a network of 1 or 3 input channels.

    Gray enters a 3-channel network replicated; RGB enters a 1-channel network as three images. Alpha that varies is
    the last image of the batch, entered as gray; colour hidden by full transparency is first replaced by its visible
    neighbours'. Raises ModelError for other channel counts.
    """
    if channels not in (1, 3):
        raise ModelError(f"the network takes {channels} input channels; images feed networks of 1 or 3")
    pixels = picture.pixels if picture.alpha is None else bleed(picture.pixels, picture.alpha)
    colours = pixels.shape[2]
    images = colours if channels == 1 else 1
    batch = np.empty((images + _sends_alpha(picture), channels, picture.height, picture.width), np.float32)
    colour = batch[:images, 0] if channels == 1 else batch[0, :colours]
    np.divide(np.moveaxis(pixels, -1, 0), picture.full_scale, out=colour, dtype=np.float32)
    if colours < channels:
        batch[0, 1:] = batch[0, :1]
    if picture.alpha is not None and _sends_alpha(picture):
        np.divide(picture.alpha, picture.full_scale, out=batch[-1, 0], dtype=np.float32)
        batch[-1, 1:] = batch[-1, :1]
    return batch


def from_planes(planes: Array, picture: Picture) -> Picture:
    """Return what the network made of `to_planes(picture, ...)`, in the picture's own dtype, with its metadata.

    `planes` is [N, C, h, w] in 0..1, of any scale. A gray picture's three output channels are averaged back to gray.
    Integer types are clipped and rounded to the nearest level; float is neither. Alpha keeps its value where it was
    flat. Raises BackendError for NaN or infinite values, ModelError for a batch that does not fit the picture.
    """
    colours, sends_alpha = picture.pixels.shape[2], _sends_alpha(picture)
    images = planes.shape[0] - sends_alpha
    if planes.ndim != 4 or (images, planes.shape[1]) not in {(1, 1), (1, 3), (colours, 1)}:
        raise ModelError(
            f"the network returned {tuple(planes.shape)} for {colours} colour channels{' and alpha' * sends_alpha}; "
            "expected [N, 1 or 3, h, w] with one image for each that was sent"
        )
    if images == 3:
        colour = planes[:3, 0]
    elif colours == 1:
        colour = planes[0].mean(axis=0, dtype=np.float32, keepdims=True)
    else:
        colour = planes[0]
    pixels = _quantised(np.moveaxis(colour, 0, -1), picture)
    alpha = None if picture.alpha is None else _alpha(planes, picture, picture.alpha)
    return replace(picture, pixels=pixels, alpha=alpha, icc=picture.icc if pixels.shape[2] == colours else None)


def _sends_alpha(picture: Picture) -> bool:
    """Tell whether alpha goes through the network: a constant one need not, `keep_flat` would restore it anyway."""
    return picture.alpha is not None and varies(picture.alpha)


def _alpha(planes: Array, picture: Picture, source: Array) -> Array:
    if not _sends_alpha(picture):
        return np.full(planes.shape[2:], source[0, 0])
    alpha = _quantised(planes[-1].mean(axis=0, dtype=np.float32), picture)
    keep_flat(alpha, source)
    return alpha


def _quantised(values: Array, picture: Picture) -> Array:
    """Return values in 0..1 in the picture's dtype, a strip at a time."""
    result = np.empty(values.shape, picture.pixels.dtype)
    step = max(1, _STRIP_VALUES // values.shape[1])
    for top in range(0, values.shape[0], step):
        part = values[top : top + step]
        if not np.isfinite(part).all():
            raise BackendError("the network's output holds NaN or infinite values; try precision='fp32'")
        if picture.pixels.dtype.kind == "u":
            part = np.rint(np.clip(part, 0, 1) * np.float32(picture.full_scale))
        result[top : top + step] = part
    return result
