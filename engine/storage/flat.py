"""A raster in one flat file, row after row: windows are read and written by position, and nothing is held."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tilefuse.errors import CapacityError, ImageError, UsageError
from tilefuse.machine import format_bytes
from tilefuse.storage.base import Array

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
# A call of the system moves less than 2 GiB.
_CALL_BYTES = 1 << 30
# A call takes the page cache's memory in pieces as large as itself, and large ones are slow to get: 1.4 GB by calls of
# 7 MB took 1.0 to 2.5 s, by calls of 128 KiB to 1 MiB 0.25 to 0.3 (Linux 6.18, ext4, in a virtual machine).
_WRITE_BYTES = 256 << 10


class FlatRaster:
    """Rows of [height, width, bands] samples from `offset` on in an open file.

    Plain reads and writes at an offset: a memory map would count into the resident memory of the process.
    """

    def __init__(self, descriptor: int, offset: int, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        self.descriptor = descriptor
        self.offset = offset
        self.shape = shape
        self.dtype = dtype

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return [y1 - y0, x1 - x0, bands]. Raises ImageError where the file ends too early."""
        _, width, bands = self.shape
        block = np.empty((y1 - y0, x1 - x0, bands), self.dtype)
        if x0 == 0 and x1 == width:
            self._fill(block, y0, 0)
        else:
            for row in range(y1 - y0):
                self._fill(block[row], y0 + row, x0)
        return block.astype(self.dtype.newbyteorder("="), copy=False)

    def write(self, y: int, x: int, block: Array) -> Array:
        """Store [h, w, bands] at (y, x) and return its samples in one piece.

        Raises CapacityError when the disk is full.
        """
        height, width, _ = block.shape
        whole: Array = np.ascontiguousarray(block, self.dtype)
        view = whole.data.cast("B")
        # Rows of the raster's own width follow one another in the file.
        rows, row_bytes = (1, len(view)) if width == self.shape[1] else (height, len(view) // height)
        stride = self.shape[1] * self.shape[2] * self.dtype.itemsize
        position = self._position(y, x)
        with disk_errors("the unfinished result"):
            for row in range(rows):
                write_from(view[row * row_bytes : (row + 1) * row_bytes], self.descriptor, position)
                position += stride
        return whole

    def passed(self, rows: int) -> None:
        """Hear that rows have been read; they are in the file."""

    def finish(self) -> None:
        """Flush to the disk."""
        with disk_errors("the unfinished result"):
            os.fsync(self.descriptor)

    def _position(self, y: int, x: int) -> int:
        return self.offset + (y * self.shape[1] + x) * self.shape[2] * self.dtype.itemsize

    def _fill(self, target: Array, y: int, x: int) -> None:
        if not read_into(target.data.cast("B"), self.descriptor, self._position(y, x)):
            raise ImageError(f"it ends in row {y} of {self.shape[0]}; the file is truncated, get a whole copy")


def read_into(view: memoryview, descriptor: int, position: int) -> bool:
    """Fill bytes from a place of a file; false where it ends too early."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done : done + _CALL_BYTES]], position + done)
        if count == 0:
            return False
        done += count
    return True


def write_from(view: memoryview, descriptor: int, position: int) -> None:
    """Write bytes to a place of a file."""
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done : done + _WRITE_BYTES], position + done)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn the system's refusals to write into errors of the command line."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise CapacityError(
                f"no space left for {what} ({error.strerror}); make space, then run again with --resume"
            ) from error
        raise UsageError(f"{what} can't be written ({error.strerror or error}); check the folder") from error


def check_free_space(folder: Path, needed: int) -> None:
    """Raise CapacityError when the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CapacityError(
            f"{folder}: the job needs about {format_bytes(needed)} of disk and {format_bytes(free)} are free; "
            "make space or choose another disk"
        )
