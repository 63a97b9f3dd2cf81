"""An image stored turned or mirrored, read upright."""

from __future__ import annotations

from dataclasses import replace

from tilefuse.storage.base import Array, RasterInfo, RasterReader


class Upright:
    """Windows of an image with an EXIF orientation of 2 to 8 (Exif 2.32, tag 0x0112), turned upright."""

    def __init__(self, stored: RasterReader, orientation: int) -> None:
        self._stored = stored
        self._swapped = orientation >= 5
        self._flip_y = orientation in (3, 4, 7, 8)
        self._flip_x = orientation in (2, 3, 6, 7)
        info = stored.info
        self.info: RasterInfo = replace(info, height=info.width, width=info.height) if self._swapped else info

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return a window of the upright image."""
        if self._flip_y:
            y0, y1 = self.info.height - y1, self.info.height - y0
        if self._flip_x:
            x0, x1 = self.info.width - x1, self.info.width - x0
        block = self._stored.read(x0, x1, y0, y1).swapaxes(0, 1) if self._swapped else self._stored.read(y0, y1, x0, x1)
        if self._flip_y:
            block = block[::-1]
        return block[:, ::-1] if self._flip_x else block

    def close(self) -> None:
        """Close the stored image."""
        self._stored.close()
