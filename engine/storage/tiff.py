"""Windows of TIFF, BigTIFF and OME-TIFF files: only the tiles or strips that a window touches are decoded."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tilefuse.errors import ImageError, UsageError
from tilefuse.storage.base import DTYPES, MAX_CHUNK_BYTES, Alpha, Array, RasterInfo
from tilefuse.storage.flat import FlatRaster
from tilefuse.storage.georeference import read_metadata
from tilefuse.storage.tiff_layout import read_layout

_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _YCBCR = 0, 1, 2, 6
_NONE, _JPEG = 1, 7
_ASSOCIATED, _UNASSOCIATED = 1, 2
# Strips of an ordinary writer are small; larger ones, or larger than the cache, are read from top to bottom instead.
_MAX_STRIP_BYTES = 64 << 20
_WINDOW_ROWS = 1024


class TiffReader:
    """Windows of one image of a TIFF file, or of one image stored as a page for each channel (OME)."""

    def __init__(self, path: Path, cache_bytes: int) -> None:
        try:
            import tifffile
        except ImportError as error:
            raise UsageError("large TIFF files need tifffile, which is missing; install tilefuse again") from error
        # Without a handler, the library's warnings about damaged files go to standard error.
        logging.getLogger("tifffile").addHandler(logging.NullHandler())
        layout = read_layout(path)
        try:
            # An OME header may name other files; only this one is opened.
            self._file = tifffile.TiffFile(path, _multifile=False)
        except (ValueError, OSError, KeyError, IndexError, TypeError) as error:
            raise ImageError(f"its TIFF header is damaged ({' '.join(str(error).split())})") from error
        try:
            self._pages = _image_pages(self._file, layout.pages)
            self._page = self._pages[0]
            self._cache_bytes = cache_bytes
            self._cache: OrderedDict[tuple[int, int], Array] = OrderedDict()
            self.info = _info(self._file, self._pages)
            self._descriptor = self._file.filehandle.fileno()
            self._rows, self._columns = _segment_shape(self._page)
            self._flat = self._contiguous()
            self._check_segments()
            if self._flat is None:
                # One tile or strip, beside its compressed bytes.
                self.info = replace(self.info, decoded_bytes=2 * self._segment_bytes())
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
            self._file.close()
            raise ImageError(f"its TIFF tags are damaged ({' '.join(str(error).split())})") from error
        except BaseException:
            self._file.close()
            raise

    @property
    def unsuited(self) -> str:
        """Why this image has to be read from top to bottom by libvips; empty when windows can be read."""
        page = self._page
        if page.photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB) and not (
            page.photometric == _YCBCR and page.compression == _JPEG
        ):
            return f"photometric interpretation {int(page.photometric)}"
        if page.dtype is None or page.dtype.name not in DTYPES or page.bitspersample not in (8, 16, 32):
            return f"{page.bitspersample}-bit samples"
        if (
            self._flat is None
            and not page.is_tiled
            and self._segment_bytes() > min(_MAX_STRIP_BYTES, self._cache_bytes)
        ):
            return "strips as large as the image"
        return ""

    @property
    def orientation(self) -> int:
        """EXIF orientation of the stored rows, 1 to 8."""
        tag = self._page.tags.get(274)
        return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1

    @property
    def rereads(self) -> bool:
        """Tell whether windows side by side would decode the same strips again and again: the cache is too small."""
        row_bytes = self.info.width * self.info.bands * self.info.dtype.itemsize
        return self._flat is None and not self._page.is_tiled and _WINDOW_ROWS * row_bytes > self._cache_bytes

    def rows(self) -> Iterator[tuple[int, Array]]:
        """Give the image strip by strip."""
        for top in range(0, self.info.height, self._rows):
            yield top, self.read(top, min(top + self._rows, self.info.height), 0, self.info.width)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return a window. Raises ImageError that names the damaged tile or strip."""
        if self._flat is not None:
            block = self._flat.read(y0, y1, x0, x1)
        else:
            block = np.zeros((y1 - y0, x1 - x0, self.info.bands), self.info.dtype)
            for row in range(y0 // self._rows, -(-y1 // self._rows)):
                for column in range(x0 // self._columns, -(-x1 // self._columns)):
                    self._paste(block, row, column, y0, x0)
        if self._page.photometric == _MIN_IS_WHITE and block.dtype.kind == "u":
            np.subtract(np.iinfo(block.dtype).max, block, out=block)
        return block

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _paste(self, block: Array, row: int, column: int, y0: int, x0: int) -> None:
        """Copy what a tile and the window have in common."""
        top, left = row * self._rows, column * self._columns
        first_y, first_x = max(y0, top), max(x0, left)
        last_y = min(y0 + block.shape[0], top + self._rows)
        last_x = min(x0 + block.shape[1], left + self._columns)
        across, down = self._grid()
        planes = self.info.bands if self._page.planarconfig == 2 else 1
        for number in range(len(self._pages)):
            for plane in range(planes):
                tile = self._segment(number, plane * across * down + row * across + column)
                if tile is None:
                    continue
                band = number if len(self._pages) > 1 else plane
                bands = slice(None) if tile.shape[2] == block.shape[2] else slice(band, band + 1)
                block[first_y - y0 : last_y - y0, first_x - x0 : last_x - x0, bands] = tile[
                    first_y - top : last_y - top, first_x - left : last_x - left
                ]

    def _segment(self, number: int, index: int) -> Array | None:
        """Return a decoded tile or strip [h, w, bands], or None for a sparse one."""
        key = (number, index)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        page = self._pages[number]
        across, _ = self._grid()
        place = index % (across * self._grid()[1])
        name = f"{'tile' if page.is_tiled else 'strip'} {index} (row {place // across}, column {place % across})"
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0:
            return None
        if count > 2 * MAX_CHUNK_BYTES:
            raise ImageError(f"{name} declares {count} bytes; the file is damaged")
        data = os.pread(self._descriptor, count, offset)
        if len(data) < count:
            raise ImageError(f"{name} lies past the end of the file; it is truncated, get a whole copy")
        try:
            tile, _, shape = page.decode(data, index, jpegtables=page.jpegtables)
        except Exception as error:
            # Codecs raise whatever damaged bytes lead them to; to the user they all mean one thing.
            raise ImageError(f"{name} is damaged ({' '.join(str(error).split())}); get a whole copy") from error
        if tile is None:
            return None
        decoded: Array = tile[0, : shape[1], : shape[2]]
        self._cache[key] = decoded
        while sum(held.nbytes for held in self._cache.values()) > self._cache_bytes and len(self._cache) > 1:
            self._cache.popitem(last=False)
        return decoded

    def _grid(self) -> tuple[int, int]:
        return -(-self._page.imagewidth // self._columns), -(-self._page.imagelength // self._rows)

    def _segment_bytes(self) -> int:
        samples = self._page.samplesperpixel if self._page.planarconfig == 1 else 1
        return int(self._rows * self._columns * samples * self.info.dtype.itemsize)

    def _contiguous(self) -> FlatRaster | None:
        """Rows that simply follow one another need no decoding and no cache."""
        page = self._page
        if len(self._pages) > 1 or page.is_tiled or page.planarconfig == 2 or not page.is_memmappable:
            return None
        shape = (self.info.height, self.info.width, self.info.bands)
        stored = self.info.dtype.newbyteorder(self._file.byteorder)
        if page.dataoffsets[0] + self.info.nbytes > os.fstat(self._descriptor).st_size:
            raise ImageError(f"it declares {self.info.nbytes} bytes of samples and is shorter; get a whole copy")
        return FlatRaster(self._descriptor, page.dataoffsets[0], shape, stored)

    def _check_segments(self) -> None:
        if self._segment_bytes() > MAX_CHUNK_BYTES and self._page.is_tiled:
            raise ImageError(f"its tiles are of {self._segment_bytes()} bytes; write it with smaller tiles")
        across, down = self._grid()
        planes = self._page.samplesperpixel if self._page.planarconfig == 2 else 1
        found = min(len(self._page.dataoffsets), len(self._page.databytecounts))
        if found < across * down * planes:
            raise ImageError(f"it declares {across * down * planes} tiles or strips and lists {found}; it is damaged")


def _segment_shape(page: Any) -> tuple[int, int]:
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return max(1, min(page.rowsperstrip, page.imagelength)), page.imagewidth


def _image_pages(file: Any, count: int) -> list[Any]:
    """Return the pages that make up the image: one, or one for each channel of an OME image."""
    if count == 1:
        return [next(page for page in (file.pages.first, *file.pages) if not page.subfiletype & 5)]
    axes = file.series[0].axes if file.is_ome else ""
    if axes == "CYX" and len(file.series) == 1:
        return [page.aspage() for page in file.series[0].pages]
    detail = f" (axes {axes})" if axes else ""
    raise ImageError(f"it holds {count} pages{detail}; give a file of one image, or split it first")


def _info(file: Any, pages: list[Any]) -> RasterInfo:
    page = pages[0]
    bands = len(pages) if len(pages) > 1 else page.samplesperpixel
    extra = tuple(int(kind) for kind in page.extrasamples or ())
    alpha: Alpha = "none"
    if len(pages) == 1 and extra and extra[-1] in (_ASSOCIATED, _UNASSOCIATED):
        alpha = "premultiplied" if extra[-1] == _ASSOCIATED else "straight"
    low, high = page.tags.get(340), page.tags.get(341)
    value_range = None
    if page.dtype is not None and page.dtype.kind == "f" and low is not None and high is not None:
        bounds = float(np.min(low.value)), float(np.max(high.value))
        value_range = bounds if np.isfinite(bounds).all() and bounds[0] < bounds[1] else None
    dtype = np.dtype(np.uint8) if page.dtype is None or page.dtype.name not in DTYPES else page.dtype
    return RasterInfo(
        page.imagelength,
        page.imagewidth,
        bands,
        dtype.newbyteorder("="),
        alpha,
        value_range,
        read_metadata(page, file.ome_metadata if file.is_ome else None),
    )
