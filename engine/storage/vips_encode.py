"""JPEG, WebP and Deep Zoom from a finished raster, streamed through libvips.

libvips gets the rows from a callback, as an uncompressed PNG stream: a raster it opens itself would be mapped into
memory, which counts into the resident memory of the process.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tilefuse.errors import CapacityError, UsageError
from tilefuse.images.png_writer import chunk
from tilefuse.machine import format_bytes
from tilefuse.storage.base import Raster, RasterInfo
from tilefuse.storage.levels import on_white, rounded
from tilefuse.storage.tiff_encode import CancelledError
from tilefuse.storage.vips import load_pyvips

_JPEG_QUALITY = 95
_DEEP_ZOOM_TILE_PX = 254
_MM_PER_INCH = 25.4
_BAND_BYTES = 1 << 20

Cancelled = Callable[[], bool]


def encode_jpeg(raster: Raster, info: RasterInfo, target: Path, cancelled: Cancelled) -> None:
    """Write 8 bits, quality 95, chroma at full size; transparency on white."""

    def save(image: Any) -> None:
        image.jpegsave(str(target), Q=_JPEG_QUALITY, subsample_mode="off")

    _save(save, raster, info, cancelled, with_alpha=False)


def encode_webp(raster: Raster, info: RasterInfo, target: Path, cancelled: Cancelled) -> None:
    """Write 8 bits, lossless."""
    _save(lambda image: image.webpsave(str(target), lossless=True, effort=0, exact=True), raster, info, cancelled)


def encode_deep_zoom(raster: Raster, info: RasterInfo, target: Path, cancelled: Cancelled) -> None:
    """Write a Deep Zoom pyramid of lossless PNG tiles: `target` (.dzi) and the folder `target`_files beside it."""
    base = str(target.with_suffix(""))

    def save(image: Any) -> None:
        image.dzsave(base, suffix=".png[compression=1]", tile_size=_DEEP_ZOOM_TILE_PX, overlap=1)

    # Each tile would hold it.
    _save(save, raster, info, cancelled, with_exif=False)


def check_webp_memory(info: RasterInfo, memory: int) -> None:
    """Raise CapacityError when libwebp, which holds the picture and its lossless model whole, needs more memory."""
    needed = 12 * info.height * info.width
    if needed > memory:
        raise CapacityError(
            f"WebP of {info.width} x {info.height} px is encoded as a whole, which takes about {format_bytes(needed)}, "
            f"and {format_bytes(memory)} are allowed; allow more memory, or choose PNG or TIFF"
        )


def _save(
    save: Callable[[Any], None],
    raster: Raster,
    info: RasterInfo,
    cancelled: Cancelled,
    *,
    with_alpha: bool | None = None,
    with_exif: bool = True,
) -> None:
    """Run an encoder on the raster as an image of 8 bits with metadata; without its alpha it lies on white."""
    with_alpha = info.alpha != "none" if with_alpha is None else with_alpha
    pyvips = load_pyvips()
    chunks = _png(raster, info, with_alpha)
    rest = [memoryview(b"")]
    errors: list[BaseException] = []

    def read(length: int) -> memoryview | None:
        while not rest[0]:
            # A stream that ends too early is what stops an encoder; libvips would lose the error itself.
            try:
                chunk = None if cancelled() else next(chunks, None)
            except BaseException as error:  # noqa: BLE001 - raised again once libvips has returned
                errors.append(error)
                chunk = None
            if chunk is None:
                return None
            rest[0] = memoryview(chunk)
        given, rest[0] = rest[0][:length], rest[0][length:]
        return given

    # The source has to stay referenced until the encoder ends: libvips calls back through it.
    source = pyvips.SourceCustom()
    source.on_read(read)
    try:
        save(
            _described(
                pyvips, pyvips.Image.pngload_source(source, access="sequential", unlimited=True), info, with_exif
            )
        )
    except pyvips.Error as error:
        if errors:
            raise errors[0] from error
        if cancelled():
            raise CancelledError from error
        reason = " ".join(str(error).split())
        if any(word in reason.lower() for word in ("no space", "file too large", "quota", "write error")):
            raise CapacityError(
                f"no space left for the result ({reason}); make space, then run again with --resume"
            ) from error
        raise UsageError(f"the result can't be encoded ({reason}); choose another format") from error


def _described(pyvips: Any, image: Any, info: RasterInfo, with_exif: bool) -> Any:
    metadata = info.metadata
    image = image.copy()
    image.set_type(pyvips.GValue.gint_type, "concurrency", 1)
    if metadata.dpi is not None:
        image = image.copy(xres=metadata.dpi[0] / _MM_PER_INCH, yres=metadata.dpi[1] / _MM_PER_INCH)
    if metadata.icc is not None:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", metadata.icc)
    if with_exif and metadata.exif is not None:
        image.set_type(pyvips.GValue.blob_type, "exif-data", metadata.exif)
    return image


def _png(raster: Raster, info: RasterInfo, with_alpha: bool) -> Iterator[bytes]:
    """Give an uncompressed PNG of 8 bits piece by piece (W3C PNG, third edition; filter 0, stored deflate blocks)."""
    colour = info.bands - (info.alpha != "none")
    kind = {(1, False): 0, (3, False): 2, (1, True): 4, (3, True): 6}[colour, with_alpha]
    yield b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", info.width, info.height, 8, kind, 0, 0, 0))
    deflate = zlib.compressobj(0)
    step = max(1, _BAND_BYTES // (info.width * info.bands * info.dtype.itemsize))
    for top in range(0, info.height, step):
        block = raster.read(top, min(top + step, info.height), 0, info.width)
        if info.alpha != "none" and not with_alpha:
            block = on_white(block[..., :-1], block[..., -1:], info)
        lines = np.ascontiguousarray(rounded(block, info, 8)).reshape(len(block), -1)
        filtered = np.zeros((lines.shape[0], lines.shape[1] + 1), np.uint8)
        filtered[:, 1:] = lines
        data = deflate.compress(filtered.data)
        if data:
            yield chunk(b"IDAT", data)
    yield chunk(b"IDAT", deflate.flush()) + chunk(b"IEND", b"")
