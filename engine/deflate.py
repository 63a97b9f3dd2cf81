"""Deflate by ISA-L, where it is installed, at its quickest level.

On photographs upscaled x4, one thread, after PNG's filters: 94 to 175 MP/s against zlib's 31 to 40 at its level 1, and
5 % smaller. libdeflate at its quickest takes twice as long for 3 % less.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def _library() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    return isal_zlib


isal_zlib = _library()
_LEVEL = 1


def crc32(data: bytes | memoryview, start: int = 0) -> int:
    """Return the CRC-32 of bytes that follow those whose CRC-32 is `start`; all libraries agree."""
    return int((isal_zlib or zlib).crc32(data, start))


def adler32(data: bytes | memoryview) -> int:
    """Return the Adler-32 of bytes; all libraries agree."""
    return int((isal_zlib or zlib).adler32(data))


def block(data: memoryview, *, last: bool) -> bytes:
    """Deflate bytes into blocks that end on a byte and look back at nothing, so that such results can be joined.

    Format: RFC 1951, section 3.2; without the header and checksum of RFC 1950.
    """
    deflate = (isal_zlib or zlib).compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return bytes(deflate.compress(data) + deflate.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH))


def tile_packer(dtype: np.dtype[Any]) -> Callable[[Array], bytes] | None:
    """Return what makes a tile or strip [h, w] or [h, w, bands] a deflated one of TIFF's predictor 2, or None.

    The predictor takes from each sample the one on its left, and is for integers.
    """
    if isal_zlib is None or dtype.kind != "u":
        return None
    stored = dtype.newbyteorder("<")

    def pack(tile: Array) -> bytes:
        differences = np.empty(tile.shape, stored)
        differences[:, 0] = tile[:, 0]
        np.subtract(tile[:, 1:], tile[:, :-1], out=differences[:, 1:])
        return bytes(isal_zlib.compress(differences.data, _LEVEL))

    return pack
