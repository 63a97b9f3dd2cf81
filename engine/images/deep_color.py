"""16-bit gray+alpha, RGB and RGBA out of PNG and TIFF files, which Pillow alone would reduce to 8 bits.

Pillow has no mode for such pixels, but its unpackers can keep either byte of each sample. Decoding twice, once for the
high and once for the low bytes, gives all 16 bits from Pillow's own decoders, whatever the compression.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

from tilefuse.errors import ImageError
from tilefuse.images.modes import keyed_alpha, straight

Array = np.ndarray[Any, np.dtype[Any]]
Opener = Callable[[IO[bytes]], ImageFile.ImageFile]

_OTHER_BYTE = {"B": "L", "L": "B"}


def raw_mode(image: ImageFile.ImageFile) -> str:
    """Return the layout of one stored pixel in Pillow's terms, such as "RGB;16B"; "" when unknown."""
    args = image.tile[0].args if image.tile else None
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Tell whether Pillow would drop the low byte of each sample when it loads this file."""
    return ";16" in raw_mode(image) and not image.mode.startswith("I")


def read_deep(image: ImageFile.ImageFile, stream: IO[bytes], opener: Opener) -> tuple[Array, Array | None]:
    """Decode an opened, not yet loaded 16-bit file into uint16 `pixels` [H, W, C] and straight `alpha` or None.

    Raises ImageError for a 16-bit layout without a loss-free way (CMYK).
    """
    layout, _, order = raw_mode(image).partition(";16")
    if layout == "LA":
        both = _decode(image, "RGBA").view(">u2" if order == "B" else "<u2").astype(np.uint16)
        return np.ascontiguousarray(both[..., :1]), np.ascontiguousarray(both[..., 1])
    if layout not in ("RGB", "RGBX", "RGBA", "RGBa"):
        raise ImageError(f"it holds 16-bit {layout}, which can't be read without loss; convert it to 16-bit RGB")
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    # "RGBa" would be divided by its alpha byte by byte, so its samples are read as they stand.
    stored = layout.replace("a", "A")
    values = _decode(image, f"{stored};16{order}").astype(np.uint16)
    values <<= 8
    stream.seek(0)
    values |= _decode(opener(stream), f"{stored};16{_OTHER_BYTE[order]}")
    if values.shape[2] == 3:
        return values, keyed_alpha(image, values)
    pixels, alpha = np.ascontiguousarray(values[..., :3]), np.ascontiguousarray(values[..., 3])
    return (straight(pixels, alpha) if layout == "RGBa" else pixels), alpha


def _decode(image: ImageFile.ImageFile, mode: str) -> Array:
    """Decode `image` with another unpacker of the same pixel size."""
    image.tile = [
        tile._replace(args=(mode, *tile.args[1:]) if isinstance(tile.args, tuple) else mode) for tile in image.tile
    ]
    image.load()
    return np.asarray(image)


def planar(image: Image.Image) -> bool:
    """Tell whether a TIFF keeps its channels in planes of their own."""
    return bool(getattr(image, "tag_v2", {}).get(284, 1) == 2)


def is_deep_planar(image: Image.Image) -> bool:
    """Tell whether a TIFF keeps more than 8 bits in planes, which Pillow's unpackers take for 8 bits."""
    return planar(image) and len(image.getbands()) > 1 and max(getattr(image, "tag_v2", {}).get(258, (1,))) > 8
