"""Deflate by ISA-L, where it is installed: about twice as fast as libdeflate at its quickest, for 3 % more bytes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tilefuse.storage.base import Array


def _library() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    return isal_zlib


isal_zlib = _library()
_LEVEL = 1


def crc32(data: memoryview) -> int:
    """Return the CRC-32 of bytes, of whoever computes it quickest: all agree."""
    return int((isal_zlib or zlib).crc32(data))


def tile_packer(dtype: np.dtype[Any]) -> Callable[[Array], bytes] | None:
    """Return what makes a tile [h, w] or [h, w, bands] a deflated one of TIFF's predictor 2, or None.

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
