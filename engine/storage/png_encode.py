"""PNG from a finished raster, compressed by several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tilefuse.images.png_writer import block_rows, write_png_blocks
from tilefuse.storage.base import Array, Raster, RasterInfo
from tilefuse.storage.flat import disk_errors
from tilefuse.storage.levels import rounded
from tilefuse.storage.tiff_encode import CancelledError


def encode_png(raster: Raster, info: RasterInfo, target: Path, cancelled: Callable[[], bool]) -> None:
    """Write 8 or 16 bits; float is rounded to 16 bits."""
    bits = 8 if info.dtype == np.uint8 else 16
    step = block_rows(info.width * info.bands * bits // 8)

    def blocks() -> Iterator[Array]:
        for top in range(0, info.height, step):
            if cancelled():
                raise CancelledError
            yield rounded(raster.read(top, min(top + step, info.height), 0, info.width), info, bits)

    shape, metadata = (info.height, info.width, info.bands), info.metadata
    with disk_errors("the result"), open(target, "wb") as stream:
        for _ in write_png_blocks(
            stream, blocks(), shape, np.dtype(f"uint{bits}"), metadata.icc, metadata.dpi, metadata.exif
        ):
            pass
