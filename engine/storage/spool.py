"""A temporary raster for sources that can only be read from top to bottom.

Cost: as many bytes of disk beside the output as the decoded image has, and one pass over it. The file has no name, so
nothing is left of it however the process ends.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from tilefuse.storage.base import Array, RasterInfo
from tilefuse.storage.flat import FlatRaster, check_free_space, disk_errors

Bands = Iterator[tuple[int, Array]]


class Spooled:
    """Windows of a temporary raster."""

    def __init__(self, info: RasterInfo, descriptor: int) -> None:
        self.info = info
        self._descriptor = descriptor
        self._raster = FlatRaster(descriptor, 0, (info.height, info.width, info.bands), info.dtype)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return a window."""
        return self._raster.read(y0, y1, x0, x1)

    def close(self) -> None:
        """Close the file, which frees its space."""
        os.close(self._descriptor)


def spool(info: RasterInfo, rows: Callable[[], Bands], folder: Path) -> Spooled:
    """Copy an image that comes as (first row, [h, width, bands]) into a temporary raster in `folder`.

    Raises:
        CapacityError: the disk has no space for it.
    """
    check_free_space(folder, info.nbytes)
    path = folder / f".tilefuse-{secrets.token_hex(6)}.input"
    with disk_errors("the temporary copy of the input"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    try:
        raster = FlatRaster(descriptor, 0, (info.height, info.width, info.bands), info.dtype)
        for top, block in rows():
            raster.write(top, 0, block)
    except BaseException:
        os.close(descriptor)
        raise
    return Spooled(info, descriptor)
