"""Pictures: straight colour, alpha and metadata that travels with them; from and to NumPy arrays and Pillow images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tilefuse.errors import ImageError
from tilefuse.images.metadata import exif_bytes, resolution_dpi
from tilefuse.images.modes import decode_mode, full_scale

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES = (np.uint8, np.uint16, np.float32)
_ARRAY_DTYPES = ("uint8", "uint16", "float16", "float32", "float64")


@dataclass(frozen=True, eq=False)
class Picture:
    """Hold one still image.

    `pixels` is [H, W, C] with C = 1 (gray) or 3 (RGB), straight (not premultiplied) colour; `alpha` is [H, W] of the
    same dtype or None. uint8 and uint16 span 0..255 and 0..65535; float32 is 0..1 and may exceed it.
    `dpi` is (horizontal, vertical) pixels per inch; `icc` is the raw profile and `exif` a little-endian EXIF
    block (it starts with b"Exif\\0\\0II"). `notes` tells the user what was converted; `mode` names
    what the source held. Raises ImageError when the arrays do not fit this description.
    """

    pixels: Array
    alpha: Array | None = None
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()
    mode: str = "array"

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
            raise ImageError(f"pixels of shape {shape}; expected [H, W, 1] or [H, W, 3] with at least one pixel")
        if dtype.type not in DTYPES:
            raise ImageError(f"pixels of dtype {dtype}; expected uint8, uint16 or float32")
        if self.alpha is not None and (self.alpha.shape != shape[:2] or self.alpha.dtype != dtype):
            raise ImageError(
                f"alpha of shape {self.alpha.shape} and dtype {self.alpha.dtype}; expected {shape[:2]} and {dtype}"
            )
        if self.exif is not None and not self.exif.startswith(b"Exif\0\0II*\0"):
            raise ImageError(f'exif starting with {self.exif[:10]!r}; expected b"Exif\\0\\0II*\\0" (little-endian)')
        for name, values in (("pixels", self.pixels), ("alpha", self.alpha)):
            if values is not None and dtype == np.float32 and not np.isfinite(values).all():
                bad = int(values.size - np.isfinite(values).sum())
                raise ImageError(f"{bad} of {values.size} {name} values are NaN or infinite; replace them first")

    @property
    def height(self) -> int:
        """Return the number of rows."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return int(self.pixels.shape[1])

    @property
    def is_gray(self) -> bool:
        """Tell whether the colour is one channel."""
        return bool(self.pixels.shape[2] == 1)

    @property
    def full_scale(self) -> int:
        """Return the value of white and of full opacity: 255, 65535, or 1 for float."""
        return full_scale(self.pixels.dtype)


def picture_from_array(array: Array) -> Picture:
    """Wrap a [H, W] or [H, W, C] array, C = 1 gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha.

    uint8 and uint16 span their full range; float16, float32 and float64 are 0..1 (kept as float32).
    Raises ImageError for any other dtype or shape, for NaN or infinite values, and for a masked array that hides some.
    """
    if np.ma.is_masked(array):
        raise ImageError("masked array that hides pixels, which have no colour then; give array.filled(value)")
    # Subclasses (numpy.matrix, numpy.memmap) may index in their own ways.
    array = np.asarray(array)
    if array.dtype.newbyteorder("=").name not in _ARRAY_DTYPES:
        raise ImageError(f"array of dtype {array.dtype}; expected {', '.join(_ARRAY_DTYPES)} (float in 0..1)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)) or array.size == 0:
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 2, 3, 4):
            hint = "; channels must come last: numpy.moveaxis(image, 0, -1)"
        elif array.ndim == 4:
            hint = "; pass the images of a batch one by one"
        raise ImageError(
            f"array of shape {array.shape}; expected [H, W] or [H, W, C] with C of 1 to 4 and at least one pixel{hint}"
        )
    dtype = np.dtype(np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    values = array.reshape(*array.shape[:2], -1)
    has_alpha = values.shape[2] in (2, 4)
    colour = np.ascontiguousarray(values[..., :-1] if has_alpha else values, dtype)
    return Picture(colour, np.ascontiguousarray(values[..., -1], dtype) if has_alpha else None)


def picture_to_array(picture: Picture, like: Array) -> Array:
    """Return [H, W] when `like` is [H, W] and the picture is gray without alpha, else [H, W, C], in `like`'s dtype."""
    parts = [picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha[..., None]]
    array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    if like.ndim == 2 and array.shape[2] == 1:
        array = array[..., 0]
    return array.astype(like.dtype.newbyteorder("="), copy=False)


def picture_from_pil(image: Image.Image) -> Picture:
    """Copy the current frame of a Pillow image.

    The pixels stay as Pillow shows them: an EXIF orientation is not applied but stays in `exif`, so that the result
    and the source still turn the same way. Raises ImageError for modes without a stated range (such as "I" or "LAB"),
    for an image without pixels, and for one that was closed or whose file is damaged or truncated.
    """
    if 0 in image.size:
        raise ImageError(f"Pillow image of {image.width} x {image.height} px; expected at least one pixel")
    try:
        image.load()
    except MemoryError:
        raise
    # Pillow decodes a file when its pixels are first asked for: what a closed or damaged one leads it to comes here.
    except Exception as error:
        raise ImageError(
            f"Pillow can't give the pixels ({error}); the image was closed, or its file is damaged or truncated: "
            "open a whole copy, and close it after the call"
        ) from error
    decoded = decode_mode(image)
    if decoded.alpha is not None and decoded.pixels.dtype == np.uint16:
        raise ImageError("Pillow holds no 16-bit image with alpha; pass NumPy arrays or a file's path instead")
    return Picture(
        decoded.pixels,
        decoded.alpha,
        icc=decoded.icc,
        dpi=resolution_dpi(image),
        exif=exif_bytes(image, keep_orientation=True)[0],
        notes=decoded.notes,
        mode=image.mode,
    )


def picture_to_pil(picture: Picture) -> Image.Image:
    """Return a Pillow image of mode L, LA, RGB, RGBA, I;16 or F, with ICC profile, dpi and EXIF in its `info`.

    Raises ImageError for 16-bit or float pictures with colour or alpha: Pillow has no mode for them.
    """
    array = picture_to_array(picture, like=picture.pixels[..., 0])
    if array.dtype != np.uint8 and array.ndim != 2:
        raise ImageError(f"Pillow has no mode for {array.dtype} with {array.shape[2]} channels; ask for a NumPy array")
    image = Image.fromarray(array)
    found = {"icc_profile": picture.icc, "dpi": picture.dpi, "exif": picture.exif}
    image.info.update({key: value for key, value in found.items() if value is not None})
    return image
