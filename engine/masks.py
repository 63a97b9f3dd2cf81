"""Masks of what is missing: white, or true, is a hole to be filled; black is kept exactly."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tilefuse.errors import ImageError
from tilefuse.images import Picture, picture_from_array, picture_from_pil, read_image
from tilefuse.tensor_images import plain

Mask = NDArray[np.bool_]
MaskLike = Mask | NDArray[Any] | Image.Image | Tensor | str | os.PathLike[str]


def mask_of(value: MaskLike) -> Mask:
    """Take a mask: bool, or gray, of which the lighter half is the hole.

    The path of an image file; a NumPy array or torch tensor [H, W], [1, H, W] or [H, W, 1] of bool, uint8, uint16 or
    float in 0..1; or a Pillow image of mode 1 or L. Returns bool [H, W], true where the image has a hole.

    Raises:
        ImageError: anything else.
    """
    if isinstance(value, str | os.PathLike):
        return read_mask(value)
    if isinstance(value, Image.Image):
        return _holes(picture_from_pil(value), "the mask")
    if isinstance(value, Tensor):
        dense = plain(value)
        array = (dense.float() if dense.dtype.is_floating_point else dense).numpy()
    elif isinstance(value, np.ndarray):
        array = value
    else:
        raise ImageError(f"the mask is a {type(value).__name__}; give an array, a tensor or a gray Pillow image")
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2:
        raise ImageError(f"the mask has shape {list(value.shape)}; expected a gray image [H, W]")
    return array if array.dtype == np.bool_ else _holes(picture_from_array(array), "the mask")


def read_mask(path: str | os.PathLike[str]) -> Mask:
    """Read a mask from a gray or 1-bit image file; the lighter half is the hole.

    Raises:
        ImageError: the file can't be read, or is no gray image.
    """
    return _holes(read_image(path), os.fspath(path))


def _holes(picture: Picture, name: str) -> Mask:
    if not picture.is_gray or picture.alpha is not None:
        kind = "colour" if not picture.is_gray else "transparency"
        raise ImageError(f"{name} has {kind}; a mask is a gray or 1-bit image, white where the picture has holes")
    return np.asarray(picture.pixels[..., 0] > picture.full_scale / 2)
