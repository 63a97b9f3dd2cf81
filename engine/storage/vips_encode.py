"""PNG, JPEG, WebP and Deep Zoom from a finished raster, streamed through libvips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tilefuse.errors import CapacityError, UsageError
from tilefuse.machine import format_bytes
from tilefuse.storage.base import RasterInfo
from tilefuse.storage.vips import load_pyvips

_FORMATS = {"uint8": "uchar", "uint16": "ushort", "float32": "float"}
_JPEG_QUALITY = 95
_DEEP_ZOOM_TILE_PX = 254
_MM_PER_INCH = 25.4


def encode_png(raster: Path, offset: int, info: RasterInfo, target: Path, cancelled: Callable[[], bool]) -> None:
    """Write 8 or 16 bits, compression level 1; float is rounded to 16 bits."""
    image = _image(raster, offset, info, deepest=16)
    _save(lambda: image.pngsave(str(target), compression=1, filter="sub"), image, cancelled)


def encode_jpeg(raster: Path, offset: int, info: RasterInfo, target: Path, cancelled: Callable[[], bool]) -> None:
    """Write 8 bits, quality 95, chroma at full size; transparency on white."""
    image = _image(raster, offset, info, deepest=8)
    if info.alpha != "none":
        image = image.flatten(background=255)
    _save(lambda: image.jpegsave(str(target), Q=_JPEG_QUALITY, subsample_mode="off"), image, cancelled)


def encode_webp(raster: Path, offset: int, info: RasterInfo, target: Path, cancelled: Callable[[], bool]) -> None:
    """Write 8 bits, lossless."""
    image = _image(raster, offset, info, deepest=8)
    _save(lambda: image.webpsave(str(target), lossless=True, effort=0, exact=True), image, cancelled)


def encode_deep_zoom(raster: Path, offset: int, info: RasterInfo, target: Path, cancelled: Callable[[], bool]) -> None:
    """Write a Deep Zoom pyramid of lossless PNG tiles: `target` (.dzi) and the folder `target`_files beside it."""
    image = _image(raster, offset, info, deepest=8)
    base = str(target.with_suffix(""))
    _save(
        lambda: image.dzsave(base, suffix=".png[compression=1]", tile_size=_DEEP_ZOOM_TILE_PX, overlap=1),
        image,
        cancelled,
    )


def check_webp_memory(info: RasterInfo, memory: int) -> None:
    """Raise CapacityError when libwebp, which holds the picture and its lossless model whole, needs more memory."""
    needed = 12 * info.height * info.width
    if needed > memory:
        raise CapacityError(
            f"WebP of {info.width} x {info.height} px is encoded as a whole, which takes about {format_bytes(needed)}, "
            f"and {format_bytes(memory)} are allowed; allow more memory, or choose PNG or TIFF"
        )


def _image(raster: Path, offset: int, info: RasterInfo, deepest: int) -> Any:
    """Return the raster as a libvips image of at most `deepest` bits, with its metadata."""
    pyvips = load_pyvips()
    image = pyvips.Image.rawload(
        str(raster),
        info.width,
        info.height,
        info.bands,
        offset=offset,
        format=_FORMATS[info.dtype.name],
        access="sequential",
    )
    gray = info.bands - (info.alpha != "none") == 1
    full = 1.0 if info.dtype.kind == "f" else float(np.iinfo(info.dtype).max)
    if info.dtype.kind == "f" or (deepest == 8 and info.dtype == np.uint16):
        low, high = info.value_range or (0.0, full)
        top = 2**deepest - 1
        factor = top / (high - low)
        image = image.linear(factor, -low * factor).rint().cast("uchar" if deepest == 8 else "ushort")
    wide = image.format == "ushort"
    image = image.copy(interpretation={(True, False): "b-w", (True, True): "grey16"}.get((gray, wide), "srgb"))
    if wide and not gray:
        image = image.copy(interpretation="rgb16")
    metadata = info.metadata
    if metadata.dpi is not None:
        image = image.copy(xres=metadata.dpi[0] / _MM_PER_INCH, yres=metadata.dpi[1] / _MM_PER_INCH)
    if metadata.icc is not None:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", metadata.icc)
    return image


def _save(save: Callable[[], None], image: Any, cancelled: Callable[[], bool]) -> None:
    """Run an encoder; `cancelled` is asked as it advances and stops it."""
    pyvips = load_pyvips()
    image.set_progress(True)
    image.signal_connect("eval", lambda pipeline, _: pipeline.set_kill(True) if cancelled() else None)
    try:
        save()
    except pyvips.Error as error:
        reason = " ".join(str(error).split())
        if any(word in reason.lower() for word in ("no space", "file too large", "quota", "write error")):
            raise CapacityError(
                f"no space left for the result ({reason}); make space, then run again with --resume"
            ) from error
        raise UsageError(f"the result can't be encoded ({reason}); choose another format") from error
