"""Images that only come from top to bottom (PNG, JPEG, WebP, unusual TIFF), through libvips into a temporary raster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tilefuse.errors import CapacityError, ImageError, UsageError
from tilefuse.images.metadata import exif_of_block
from tilefuse.machine import format_bytes
from tilefuse.storage.base import Alpha, Array, Metadata, RasterInfo, RasterReader
from tilefuse.storage.oriented import Upright
from tilefuse.storage.spool import Spooled, spool

_FORMATS = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}
_BAND_BYTES = 8 << 20
_MM_PER_INCH = 25.4
# A file may unfold into more pixels than any budget; honest pictures compress by far less than this.
MAX_RATIO = 400


def load_pyvips() -> Any:
    """Import pyvips. Raises UsageError with what to install."""
    try:
        import pyvips
    except (ImportError, OSError) as error:
        raise UsageError(f"large images of this format need libvips ({error}); pip install 'tilefuse[huge]'") from error
    # Operations are never repeated here, so a cache would only hold memory.
    pyvips.cache_set_max(0)
    return pyvips


def open_sequential(path: Path, kind: str, folder: Path, memory: int) -> RasterReader:
    """Copy an image into a temporary raster in `folder` and return its reader.

    `kind` is PNG, JPEG, WebP or TIFF. Interlaced PNG, progressive JPEG and WebP are held whole by their decoders: they
    are refused when that is more than `memory` bytes.

    Raises:
        ImageError: the file is damaged, animated, or of samples that have no fixed range.
        CapacityError: memory or disk do not suffice.
    """
    pyvips = load_pyvips()
    loader = getattr(pyvips.Image, f"{kind.lower()}load")
    try:
        image = loader(str(path), access="sequential", fail_on="truncated")
        _check(image, path, kind, memory)
        image, notes = _plain(image)
        info = _info(image, notes)
        reader: Spooled = spool(info, lambda: _rows(pyvips, image), folder)
    except pyvips.Error as error:
        reason = " ".join(str(error).split())
        raise ImageError(f"can't be decoded ({reason}); the file is damaged or truncated, get a whole copy") from error
    orientation = _field(image, "orientation", 1)
    return Upright(reader, orientation) if orientation in range(2, 9) else reader


def _check(image: Any, path: Path, kind: str, memory: int) -> None:
    pages = _field(image, "n-pages", 1)
    if pages > 1:
        raise ImageError(f"it holds {pages} pages or frames; give a file of one image")
    pixels = image.width * image.height
    decoded = pixels * image.bands
    if decoded > MAX_RATIO * path.stat().st_size and decoded > 1 << 31:
        raise ImageError(
            f"it declares {image.width} x {image.height} px in {path.stat().st_size} bytes; that is no honest picture"
        )
    progressive = bool(_field(image, "interlaced", 0))
    held = {"PNG": decoded * progressive, "JPEG": 2 * decoded * progressive, "WebP": 4 * pixels}.get(kind, 0)
    if held > memory:
        what = "WebP" if kind == "WebP" else f"an interlaced {kind}"
        raise CapacityError(
            f"{what} of {image.width} x {image.height} px is decoded as a whole, which takes {format_bytes(held)}, "
            f"and {format_bytes(memory)} are allowed; allow more memory or convert it to TIFF"
        )


def _plain(image: Any) -> tuple[Any, tuple[str, ...]]:
    """Return gray or RGB, with or without alpha, of a type with a fixed range, and notes on what was converted."""
    if image.interpretation in ("srgb", "rgb", "rgb16", "b-w", "grey16", "multiband", "scrgb"):
        return image, ()
    if image.interpretation == "cmyk" and _field(image, "icc-profile-data", None) is not None:
        return image.icc_transform("srgb", embedded=True), ("CMYK converted to sRGB with its profile",)
    return image.colourspace("srgb"), (f"{image.interpretation} converted to sRGB",)


def _info(image: Any, notes: tuple[str, ...]) -> RasterInfo:
    if image.format not in _FORMATS:
        raise ImageError(f"its samples are {image.format}; convert it to 8 or 16 bits or to float")
    alpha: Alpha = "straight" if image.hasalpha() else "none"
    known = _field(image, "resolution-unit", None) is not None and image.xres > 1 / _MM_PER_INCH
    dpi = (image.xres * _MM_PER_INCH, image.yres * _MM_PER_INCH) if known else None
    icc = _field(image, "icc-profile-data", None)
    block = _field(image, "exif-data", None)
    exif, damaged = (None, None) if block is None else exif_of_block(bytes(block))
    if damaged is not None:
        notes = (*notes, damaged)
    metadata = Metadata(None if icc is None else bytes(icc), dpi, exif=exif)
    return RasterInfo(
        image.height, image.width, image.bands, np.dtype(_FORMATS[image.format]), alpha, None, metadata, notes
    )


def _rows(pyvips: Any, image: Any) -> Iterator[tuple[int, Array]]:
    region = pyvips.Region.new(image)
    dtype = np.dtype(_FORMATS[image.format])
    step = max(1, min(256, _BAND_BYTES // (image.width * image.bands * dtype.itemsize)))
    for top in range(0, image.height, step):
        rows = min(step, image.height - top)
        data = region.fetch(0, top, image.width, rows)
        yield top, np.frombuffer(data, dtype).reshape(rows, image.width, image.bands)


def _field(image: Any, name: str, default: Any) -> Any:
    return image.get(name) if name in image.get_fields() else default
