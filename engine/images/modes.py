"""Pillow's image modes as arrays: gray, palette, transparency keys, CMYK, 16-bit and float."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tilefuse.errors import ImageError

Array = np.ndarray[Any, np.dtype[Any]]

# Converting strip by strip keeps one copy of the image beside the decoded one, not three; strips that stay in the cache
# take a quarter of the time.
_STRIP_PIXELS = 1 << 18

_PLAIN = {"L": "L", "RGB": "RGB", "I;16": None, "I;16L": None, "I;16B": None, "I;16N": None, "F": None}
_WITH_ALPHA = {"LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}
_CONVERTED = {"1": ("L", "1-bit read as 8-bit gray"), "RGBX": ("RGB", ""), "YCbCr": ("RGB", "YCbCr converted to RGB")}


@dataclass(frozen=True, eq=False)
class Decoded:
    """Hold what a Pillow image shows: `pixels` [H, W, C], `alpha` [H, W] or None, its profile and the conversions."""

    pixels: Array
    alpha: Array | None
    icc: bytes | None
    notes: tuple[str, ...] = ()


def decode_mode(image: Image.Image) -> Decoded:
    """Convert any supported Pillow mode to straight gray or RGB, uint8, uint16 or float32, with alpha apart.

    Raises ImageError for modes whose values have no stated range or colour (I, LAB, HSV).
    """
    mode, icc = image.mode, image.info.get("icc_profile") or None
    if mode in _WITH_ALPHA:
        return Decoded(*_split(_copy(image, _as(_WITH_ALPHA[mode]))), icc, _palette_note(mode))
    if mode == "P":
        # A palette may hold the alpha itself: Pillow makes such ones when it quantizes RGBA.
        if image.has_transparency_data:
            return Decoded(*_split(_copy(image, _as("RGBA"))), icc, _palette_note(mode))
        return Decoded(_copy(image, _as("RGB")), None, icc, _palette_note(mode))
    if mode == "CMYK":
        return _decode_cmyk(image, icc)
    if mode in _CONVERTED:
        target, note = _CONVERTED[mode]
        pixels = _copy(image, _as(target))
        return Decoded(pixels, keyed_alpha(image, pixels), icc, (note,) if note else ())
    if mode in _PLAIN:
        pixels = _copy(image, None)
        return Decoded(pixels, keyed_alpha(image, pixels), icc)
    raise ImageError(
        f"its pixels are of Pillow's mode {mode!r}, which has no fixed range or colour; "
        "convert it to 8- or 16-bit gray or RGB, or to float in 0..1"
    )


def full_scale(dtype: np.dtype[Any]) -> int:
    """Return the value of white in `dtype`: 255, 65535, or 1 for float."""
    return int(np.iinfo(dtype).max) if dtype.kind == "u" else 1


def inverted(pixels: Array) -> Array:
    """Return the positive of pixels whose zero is white, in the same dtype."""
    positive: Array = pixels.dtype.type(full_scale(pixels.dtype)) - pixels
    return positive


def straight(pixels: Array, alpha: Array) -> Array:
    """Divide premultiplied colour [H, W, C] by its alpha [H, W]; transparent pixels have no colour and stay 0."""
    top = float(full_scale(pixels.dtype))
    scale = np.divide(top, alpha, out=np.zeros(alpha.shape, np.float32), where=alpha > 0, dtype=np.float32)
    colour = pixels * scale[..., None]
    return colour if pixels.dtype.kind == "f" else np.rint(np.minimum(colour, top)).astype(pixels.dtype)


def keyed_alpha(image: Image.Image, pixels: Array) -> Array | None:
    """Return the alpha a transparency key means (PNG tRNS: one gray value or one colour is transparent)."""
    key = image.info.get("transparency")
    if key is None or isinstance(key, bytes) or pixels.dtype.kind != "u":
        return None
    if image.mode == "1":
        key = 255 if key else 0
    alpha = np.full(pixels.shape[:2], full_scale(pixels.dtype), pixels.dtype)
    alpha[(pixels == np.array(key)).all(axis=2)] = 0
    return alpha


def _as(mode: str) -> Callable[[Image.Image], Image.Image]:
    return lambda part: part if part.mode == mode else part.convert(mode)


def _palette_note(mode: str) -> tuple[str, ...]:
    return ("palette expanded to RGB",) if mode in ("P", "PA") else ()


def _copy(image: Image.Image, convert: Callable[[Image.Image], Image.Image] | None) -> Array:
    """Return [H, W, C] in native byte order, converting `_STRIP_PIXELS` at a time."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    pixels: Array | None = None
    for top in range(0, height, rows):
        part = image.crop((0, top, width, min(top + rows, height)))
        block = np.asarray(convert(part) if convert else part)
        if pixels is None:
            pixels = np.empty((height, *block.shape[1:]), block.dtype.newbyteorder("="))
        pixels[top : top + rows] = block
    if pixels is None:
        raise ImageError("it has no pixels")
    return pixels.reshape(height, width, -1)


def _split(pixels: Array) -> tuple[Array, Array]:
    return np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1])


def _decode_cmyk(image: Image.Image, icc: bytes | None) -> Decoded:
    if icc is not None:
        try:
            # Profiles are third-party data: one that does not describe CMYK can't be used, and that is no reason to
            # refuse the picture.
            transform = ImageCms.buildTransform(
                ImageCms.ImageCmsProfile(io.BytesIO(icc)),
                ImageCms.createProfile("sRGB"),
                "CMYK",
                "RGB",
                ImageCms.Intent.RELATIVE_COLORIMETRIC,
                ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            note = "CMYK converted to RGB without its profile, which can't be used"
        else:
            pixels = _copy(image, lambda part: _applied(part, transform))
            return Decoded(pixels, None, None, ("CMYK converted to sRGB with its profile",))
    else:
        note = "CMYK converted to RGB without a profile"
    return Decoded(_copy(image, _as("RGB")), None, None, (note,))


def _applied(part: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    result = ImageCms.applyTransform(part, transform)
    if result is None:
        raise ImageError("its colour profile could not be applied")
    return result


def pillow_image(pixels: Array) -> Image.Image:
    """Make an image of uint8 pixels [H, W, 1 to 4]: gray or colour, with alpha where that makes two or four."""
    height, width, depth = pixels.shape
    # Image.fromarray paints its image black before it copies, which takes half as long as encoding it as JPEG.
    image = Image.new(_OF_DEPTH[depth], (width, height), None)
    image.frombytes(np.ascontiguousarray(pixels).data)
    return image


_OF_DEPTH = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
