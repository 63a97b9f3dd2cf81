"""Which reader opens a file and which encoder writes one: a line for each format."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tilefuse.errors import ImageError, TilefuseError, UsageError
from tilefuse.images import FORMATS, MAX_PIXELS, check_output
from tilefuse.images.outputs import shown
from tilefuse.storage.base import Raster, RasterInfo, RasterReader
from tilefuse.storage.cells import CellRaster, UnfinishedRaster
from tilefuse.storage.flat import FlatRaster, disk_errors
from tilefuse.storage.npy import NpyReader, npy_header
from tilefuse.storage.oriented import Upright
from tilefuse.storage.png_encode import encode_png
from tilefuse.storage.spool import spool
from tilefuse.storage.tiff import TiffReader
from tilefuse.storage.tiff_encode import encode_tiff
from tilefuse.storage.tiff_layout import read_layout
from tilefuse.storage.vips import MAX_RATIO, open_sequential
from tilefuse.storage.vips_encode import encode_deep_zoom, encode_jpeg, encode_webp
from tilefuse.storage.zarr import ZarrReader, encode_zarr
from tilefuse.tiling import Grid

# Formats of whole rasters: always streamed, and unknown to the readers of ordinary pictures.
RASTER_SUFFIXES = (".npy", ".zarr", ".dzi")
_SIGNATURES = {
    b"\x93NUMPY": "npy",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WebP",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
}


@dataclass(frozen=True)
class Target:
    """A raster (`path`, described by `info`) and how to encode it; its reads may wait for rows to be finished."""

    path: Path
    raster: Raster
    info: RasterInfo
    compression: str
    cancelled: Callable[[], bool]
    pyramid: bool = False


def is_raster_name(path: str | os.PathLike[str]) -> bool:
    """Tell whether a name means a format that is always streamed."""
    return Path(path).suffix.lower() in RASTER_SUFFIXES


def open_raster(path: Path, folder: Path, memory: int) -> RasterReader:
    """Open an image for reading windows.

    `folder` takes a temporary raster where the format can only be read from top to bottom; `memory` bounds the cache
    and the decoders.

    Raises:
        ImageError: no such file, no regular file, an unknown format, or a damaged one.
    """
    try:
        kind = _kind(path)
        if kind == "Zarr":
            return ZarrReader(path)
        if kind == "npy":
            return NpyReader(path)
        return _open_tiff(path, folder, memory) if kind == "TIFF" else open_sequential(path, kind, folder, memory)
    except ImageError as error:
        raise ImageError(f"{shown(path)}: {error}") from error


def _open_tiff(path: Path, folder: Path, memory: int) -> RasterReader:
    stored = TiffReader(path, memory)
    if stored.unsuited:
        stored.close()
        return open_sequential(path, "TIFF", folder, memory)
    orientation = stored.orientation
    reader: RasterReader = stored
    if stored.rereads:
        try:
            reader = spool(stored.info, stored.rows, folder)
        finally:
            stored.close()
    return Upright(reader, orientation) if orientation > 1 else reader


def _kind(path: Path) -> str:
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            return "Zarr"
        if not stat.S_ISREG(found.st_mode):
            raise ImageError("it is a FIFO, socket or device, not a file; give an image file")
        with open(path, "rb") as stream:
            head = stream.read(16)
    except FileNotFoundError as error:
        raise ImageError("no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"can't be opened ({getattr(error, 'strerror', None) or error}); check the path") from error
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    raise ImageError("it is none of TIFF, Zarr, .npy, PNG, JPEG and WebP; convert it first")


def probe(path: Path) -> tuple[int, int, int] | None:
    """Return (height, width, bytes a pixel) from the header; None where the ordinary reader should say what is wrong.

    More pixels than that reader accepts are believed only of a file that is large itself, or stored in tiles.
    """
    from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    openers: dict[str, Callable[[BinaryIO], Image.Image]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "WebP": WebPImagePlugin.WebPImageFile,
    }
    try:
        kind = _kind(path)
        if kind == "TIFF":
            layout = read_layout(path)
            return _believed(path, (layout.height, layout.width, layout.samples * layout.sample_bytes), layout.tiled)
        if kind not in openers:
            return None
        with open(path, "rb") as stream:
            image = openers[kind](stream)
            deep = 2 if image.mode.startswith("I;16") else 1
            return _believed(path, (image.size[1], image.size[0], len(image.getbands()) * deep), False)
    except (TilefuseError, OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, IndexError, MemoryError):
        return None


def _believed(path: Path, size: tuple[int, int, int], tiled: bool) -> tuple[int, int, int] | None:
    height, width, pixel_bytes = size
    small = height * width <= MAX_PIXELS
    return size if small or tiled or height * width * pixel_bytes <= MAX_RATIO * path.stat().st_size else None


def check_target(path: str | os.PathLike[str], *, overwrite: bool, size: tuple[int, int] | None = None) -> Path:
    """Check an output of any format as `check_output` does for pictures.

    Raises:
        UsageError: it stands already, is a link, lies in no writable folder, or can't hold the size.
    """
    target = Path(path)
    if not is_raster_name(target):
        return check_output(target, overwrite=overwrite, size=size)
    if os.path.lexists(target) and not overwrite:
        raise UsageError(f"{shown(path)}: already exists; choose another name or allow overwriting (--overwrite)")
    if target.suffix.lower() == ".npy" and target.is_dir():
        raise UsageError(f"{shown(path)}: stands there and is not a regular file; choose another output name")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"{shown(path)}: the folder {shown(folder)} does not exist; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{shown(path)}: the folder {shown(folder)} is read-only; choose another")
    return target


def encodes_rows(suffix: str) -> bool:
    """Tell whether the encoder of a format reads from top to bottom and writes as it reads.

    Of the others, WebP's holds the whole picture, and an .npy result is the raster itself.
    """
    return FORMATS.get(suffix, suffix) not in ("WebP", ".npy")


def encode(target: Target, suffix: str, output: Path) -> None:
    """Encode a finished raster as the format of `suffix` into `output`."""
    raster, info, cancelled = target.raster, target.info, target.cancelled
    kind = FORMATS.get(suffix, suffix)
    match kind:
        case "TIFF":
            encode_tiff(raster, info, output, target.compression, cancelled, pyramid=target.pyramid)
        case ".zarr":
            encode_zarr(raster, info, output, cancelled)
        case ".npy":
            # The raster is an .npy file already; where a file can't have two names, it moves.
            try:
                os.link(target.path, output)
            except OSError:
                os.rename(target.path, output)
        case "PNG":
            encode_png(raster, info, output, cancelled)
        case "JPEG":
            encode_jpeg(raster, info, output, cancelled)
        case "WebP":
            encode_webp(raster, info, output, cancelled)
        case ".dzi":
            encode_deep_zoom(raster, info, output, cancelled)
        case _:
            raise UsageError(f"{suffix} is no output format; use one of {', '.join((*FORMATS, *RASTER_SUFFIXES))}")


def unfinished_raster(
    descriptor: int, suffix: str, info: RasterInfo, grid: Grid, kept_bytes: int = 0
) -> UnfinishedRaster:
    """Lay an unfinished result out in an open file: an .npy result is that file, all others are encoded from it.

    For the encoder up to `kept_bytes` of finished cores stay in memory.
    """
    if suffix != ".npy":
        return CellRaster(descriptor, grid, info.bands, info.dtype, kept_bytes)
    prefix = npy_header((info.height, info.width, info.bands), info.dtype)
    with disk_errors("the unfinished result"):
        os.pwrite(descriptor, prefix, 0)
    return FlatRaster(descriptor, len(prefix), (info.height, info.width, info.bands), info.dtype)
