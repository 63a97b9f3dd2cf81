"""Metadata that travels with a picture: resolution, EXIF and its orientation."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image

Array = np.ndarray[Any, np.dtype[Any]]

ORIENTATION = int(ExifTags.Base.Orientation)

# What describes the picture rather than the file: description, camera, software, time, people, rating, Windows titles.
_DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 316, 18246, 18249, 33432, 40091, 40092, 40093, 40094, 40095)
# Pixel sizes no longer hold after scaling; the interoperability directory is an offset into the old file.
_STALE = (40962, 40963, 40965)

# What Pillow's parser is known to raise on damaged EXIF; broken EXIF must not cost the user the picture.
_EXIF_ERRORS = (
    SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError, ZeroDivisionError,
    OSError, EOFError, struct.error, RuntimeError,
)  # fmt: skip


def resolution_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Return (horizontal, vertical) dots per inch from header or EXIF, or None when absent or meaningless."""
    try:
        exif = image.getexif()
        # Where EXIF has no resolution and the JFIF header no unit, Pillow fills in 72.
        assumed = image.format in ("JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2) and 282 not in exif
        if "dpi" in image.info and not assumed:
            x, y = (float(value) for value in image.info["dpi"])
        else:
            per_inch = {2: 1.0, 3: 2.54}[exif.get(296, 2)]
            x, y = (per_inch * float(exif[tag]) for tag in (282, 283))
    except _EXIF_ERRORS:
        return None
    return believable_dpi(x, y)


def believable_dpi(x: float, y: float) -> tuple[float, float] | None:
    """Return (x, y), or None for values that mean nothing: 1 dpi is what TIFF writers put where nothing is known."""
    return (x, y) if all(math.isfinite(value) and 1 < value < 1e6 for value in (x, y)) else None


def exif_bytes(image: Image.Image, *, keep_orientation: bool = False) -> tuple[bytes | None, str | None]:
    """Return (EXIF block, note): what describes the picture, without orientation, sizes, thumbnail and resolution.

    The block starts with b"Exif\\0\\0" and is little-endian; None when there is nothing to keep. The note tells of
    EXIF that can't be read.
    """
    try:
        source = image.getexif()
        kept = Image.Exif()
        kept.endian = "<"
        tags = (*_DESCRIPTIVE, ORIENTATION) if keep_orientation else _DESCRIPTIVE
        for tag in tags:
            if tag in source and not _of_the_file(source[tag]):
                kept[tag] = source[tag]
        for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            entries = {tag: value for tag, value in source.get_ifd(ifd).items() if tag not in _STALE}
            if entries:
                kept[ifd] = entries
        return (kept.tobytes(), None) if len(kept) else (None, None)
    except _EXIF_ERRORS:
        return None, "damaged EXIF left out"


def exif_of_block(block: bytes) -> tuple[bytes | None, str | None]:
    """Return what `exif_bytes` does, of a raw EXIF block, with b"Exif\\0\\0" before it or without."""
    carrier = Image.new("1", (1, 1))
    carrier.info["exif"] = block if block.startswith(b"Exif\0\0") else b"Exif\0\0" + block
    return exif_bytes(carrier)


def exif_of_texts(tags: Mapping[int, object]) -> bytes | None:
    """Return an EXIF block of those of a TIFF directory's texts that describe the picture, or None without any."""
    kept = Image.Exif()
    kept.endian = "<"
    for tag in _DESCRIPTIVE:
        value = tags.get(tag)
        if isinstance(value, str) and value and not _of_the_file(value):
            kept[tag] = value.encode("utf-8", "replace")
    return kept.tobytes() if len(kept) else None


def _of_the_file(value: object) -> bool:
    """Tell a description in which scientific programs keep the array's shape; it would be wrong for any other size."""
    return isinstance(value, str) and value.lstrip().startswith(('{"shape"', "ImageJ=", "<?xml", "<OME", "shape=("))


def exif_with_resolution(exif: bytes | None, dpi: tuple[float, float]) -> bytes:
    """Return `exif` with the resolution in it, for formats that keep it nowhere else (WebP)."""
    block = Image.Exif()
    block.endian = "<"
    if exif is not None:
        block.load(exif)
    block[282], block[283], block[296] = dpi[0], dpi[1], 2
    return block.tobytes()


def exif_texts(exif: bytes) -> tuple[dict[int, bytes], bool]:
    """Return the texts of `exif`'s first directory (camera, software, time, people) by tag, and whether that is all.

    They are what a TIFF file can hold as tags of its own; each ends in a zero byte.
    """
    block = Image.Exif()
    block.load(exif)
    # Pillow reads the bytes of a text as Latin-1, so this gives them back as they were.
    texts = {tag: f"{value}\0".encode("latin-1", "replace") for tag, value in block.items() if isinstance(value, str)}
    return texts, len(texts) == len(block)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation 1..8 still to be applied to a loaded Pillow image; 1 when absent or invalid."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except _EXIF_ERRORS:
        return 1
    return valid_orientation(value)


def valid_orientation(value: object) -> int:
    """Return an EXIF orientation, 1 for anything that is none."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(array: Array, orientation: int) -> Array:
    """Turn [H, W, ...] stored with an EXIF orientation (Exif 2.32, tag 0x0112) upright."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
