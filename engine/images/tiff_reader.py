"""TIFF layouts Pillow has no mode for (float colour, 16-bit planes, 16-bit gray+alpha), read by tifffile."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, Any

import numpy as np
import tifffile

from tilefuse.errors import ImageError
from tilefuse.images.metadata import ORIENTATION, believable_dpi, exif_of_texts, valid_orientation
from tilefuse.images.modes import inverted, straight

Array = np.ndarray[Any, np.dtype[Any]]

_DEFLATE = (8, 32946, 50013)
# What tifffile decodes by itself, and no further than a strip's size: none, Deflate, PackBits; horizontal differencing.
_COMPRESSIONS = (1, *_DEFLATE, 32773)
_PREDICTORS = (1, 2)
_DTYPES = ("uint8", "uint16", "float16", "float32", "float64")


@dataclass(frozen=True, eq=False)
class TiffPage:
    """Hold one decoded page: stored `pixels` [H, W, C], straight `alpha` [H, W] or None, and its tags."""

    pixels: Array
    alpha: Array | None
    icc: bytes | None
    dpi: tuple[float, float] | None
    orientation: int
    exif: bytes | None
    skipped: int


def read_tiff(stream: IO[bytes], check_size: Callable[[tuple[int, int]], None]) -> TiffPage:
    """Decode the one full-resolution page of a TIFF file with tifffile.

    `check_size` is called with (width, height) before anything is decoded. Raises ImageError for several pages,
    for layouts that are neither gray nor RGB, and for compressions that need imagecodecs where it is not installed.
    """
    stream.seek(0)
    with tifffile.TiffFile(stream, name="image.tif") as file:
        # Bits 0 and 2 of NewSubfileType mark reduced-resolution copies and masks.
        pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage) and not page.subfiletype & 5]
        if len(pages) != 1:
            raise ImageError(f"it holds {len(pages)} full-size pages; save the one you want as a file of its own")
        page = pages[0]
        check_size((page.imagewidth, page.imagelength))
        _check_layout(page)
        _check_codec(page)
        if page.compression in _DEFLATE:
            _check_segments(file, page)
        values = page.asarray(maxworkers=1)
        values = values.reshape((-1, *values.shape[-2:]) if page.planarconfig == 2 else (*values.shape[:2], -1))
        if page.planarconfig == 2:
            values = np.moveaxis(values, 0, -1)
        pixels, alpha = _separated(values, page)
        icc = page.tags.valueof(34675)
        return TiffPage(
            pixels,
            alpha,
            icc if isinstance(icc, bytes) else None,
            _dpi(page),
            valid_orientation(page.tags.valueof(ORIENTATION)),
            exif_of_texts({tag.code: tag.value for tag in page.tags}),
            skipped=len(file.pages) - 1,
        )


def _check_layout(page: Any) -> None:
    colours = {0: 1, 1: 1, 2: 3}.get(int(page.photometric), 0)
    dtype = page.dtype.name if page.dtype is not None else "unknown samples"
    if not colours or page.samplesperpixel - len(page.extrasamples) != colours or page.imagedepth != 1:
        raise ImageError(
            f"it is a TIFF of {page.samplesperpixel} samples a pixel, photometric {int(page.photometric)}; "
            "only gray and RGB, with or without alpha, can be read"
        )
    if dtype not in _DTYPES or page.bitspersample not in (8, 16, 32, 64):
        raise ImageError(f"it holds {page.bitspersample}-bit {dtype}; expected {', '.join(_DTYPES)}")


def _check_codec(page: Any) -> None:
    if page.compression not in _COMPRESSIONS or page.predictor not in _PREDICTORS:
        if find_spec("imagecodecs") is not None:
            return
        name = getattr(page.compression, "name", page.compression)
        raise ImageError(
            f"it is compressed by {name} with predictor {int(page.predictor)}, which tifffile decodes with imagecodecs "
            "alone; install it with: pip install imagecodecs"
        )


def _check_segments(file: Any, page: Any) -> None:
    """Refuse a strip or tile that would inflate past its size: the decoder itself has no such bound."""
    rows = page.tilelength if page.is_tiled else page.rowsperstrip
    columns = page.tilewidth if page.is_tiled else page.imagewidth
    samples = 1 if page.planarconfig == 2 else page.samplesperpixel
    limit = min(rows, page.imagelength + rows - 1) * columns * samples * page.bitspersample // 8
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.filehandle.seek(offset)
        inflater = zlib.decompressobj()
        data, size = file.filehandle.read(count), 0
        while data and not inflater.eof:
            size += len(inflater.decompress(data, 1 << 20))
            data = inflater.unconsumed_tail
            if size > limit:
                raise ImageError(f"one of its strips inflates past the {limit} bytes it may hold")
        if not inflater.eof:
            raise ImageError("one of its strips is truncated")


def _separated(values: Array, page: Any) -> tuple[Array, Array | None]:
    colours = values.shape[2] - len(page.extrasamples)
    dtype = np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("=")
    pixels = np.ascontiguousarray(values[..., :colours], dtype)
    if page.photometric == 0:
        pixels = inverted(pixels)
    kinds = [int(kind) for kind in page.extrasamples]
    found = next((index for index, kind in enumerate(kinds) if kind in (1, 2)), None)
    if found is None:
        return pixels, None
    alpha = np.ascontiguousarray(values[..., colours + found], dtype)
    return (straight(pixels, alpha) if kinds[found] == 1 else pixels), alpha


def _dpi(page: Any) -> tuple[float, float] | None:
    per_inch = {2: 1.0, 3: 2.54}.get(int(page.tags.valueof(296) or 2), 0.0)
    ratios = [page.tags.valueof(tag) for tag in (282, 283)]
    if not per_inch or not all(isinstance(ratio, tuple) and len(ratio) == 2 and ratio[1] for ratio in ratios):
        return None
    x, y = (per_inch * ratio[0] / ratio[1] for ratio in ratios)
    return believable_dpi(x, y)
