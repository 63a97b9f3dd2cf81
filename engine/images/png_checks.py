"""A check Pillow does not make: that a PNG's pixel stream holds every row. Rows missing from it would read as black."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO

from tilefuse.errors import ImageError

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7 (PNG, third edition, section 8.2): first column, first row, column step, row step of each pass.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE_BYTES = 1 << 20


def check_all_rows(stream: IO[bytes]) -> None:
    """Inflate a PNG's pixel stream, keeping nothing, and raise ImageError unless it holds every row the header says."""
    stream.seek(16)
    expected = _stream_bytes(*struct.unpack(">IIBBBBB", stream.read(13)))
    inflater, size = zlib.decompressobj(), 0
    for data in _pixel_data(stream):
        while data and size <= expected and not inflater.eof:
            size += len(inflater.decompress(data, _PIECE_BYTES))
            data = inflater.unconsumed_tail
    if size < expected:
        raise ImageError(f"its pixel stream ends after {size} of {expected} bytes; the file is damaged or truncated")


def _stream_bytes(width: int, height: int, bits: int, colour: int, _: int, __: int, interlaced: int) -> int:
    """Return how many bytes the filtered rows take."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, column_step, row_step in passes:
        columns = max(0, -(-(width - left) // column_step))
        rows = max(0, -(-(height - top) // row_step))
        total += rows * (1 + (columns * _SAMPLES[colour] * bits + 7) // 8) if columns else 0
    return total


def _pixel_data(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the contents of the IDAT chunks a piece at a time."""
    stream.seek(8)
    while len(header := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind != b"IDAT":
            stream.seek(length + 4, 1)
            continue
        while length:
            data = stream.read(min(length, _PIECE_BYTES))
            if not data:
                return
            length -= len(data)
            yield data
        stream.seek(4, 1)
