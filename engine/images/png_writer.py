"""PNG of 8 and 16 bits, compressed by several threads, or encoding would take longer than upscaling.

Written here because no library among the dependencies does it: Pillow writes no 16-bit colour and uses one thread.

Format: W3C Portable Network Graphics (Third Edition); independently deflated blocks joined as in RFC 1951, section 3.2.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from tilefuse import deflate
from tilefuse.images.rows import ALL_ROWS, Rows
from tilefuse.machine import cpu_threads
from tilefuse.ordered import AHEAD, in_order

Array = np.ndarray[Any, np.dtype[Any]]

_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
_BLOCK_BYTES = 1 << 20
# One row may be more than a block.
_AHEAD_BYTES = 16 << 20
_THREADS = 8
_ADLER_MODULUS = 65521


def write_png(
    stream: BinaryIO,
    pixels: Array,
    alpha: Array | None = None,
    *,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    exif: bytes | None = None,
    rows: Rows = ALL_ROWS,
) -> None:
    """Write uint8 or uint16 `pixels` [H, W, 1 or 3] and `alpha` [H, W] losslessly.

    `icc`, `dpi` (dots per inch) and `exif` (starting with b"Exif\\0\\0") become iCCP, pHYs and eXIf. `rows` tells which
    pixels are there.
    """
    height, width, channels = pixels.shape
    channels += alpha is not None
    step = block_rows(width * channels * pixels.itemsize)

    def blocks() -> Iterator[Array]:
        for top in range(0, height, step):
            rows.wait(min(top + step, height))
            block = pixels[top : top + step]
            yield block if alpha is None else np.concatenate((block, alpha[top : top + step, :, None]), axis=2)

    done = 0
    for count in write_png_blocks(stream, blocks(), (height, width, channels), pixels.dtype, icc, dpi, exif):
        done += count
        # The block below looks back at the last row of this one.
        rows.passed(done - 1)


def block_rows(row_bytes: int) -> int:
    """Return how many rows of a picture make a block of about a mebibyte."""
    return max(1, _BLOCK_BYTES // row_bytes)


def write_png_blocks(
    stream: BinaryIO,
    blocks: Iterator[Array],
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    icc: bytes | None,
    dpi: tuple[float, float] | None,
    exif: bytes | None,
) -> Iterator[int]:
    """Write a picture of `shape` [H, W, C], alpha the last of 2 or 4 channels, that comes in blocks of whole rows.

    Gives the number of rows of each block that is written. Blocks are taken in the caller's thread, some ahead.
    """
    height, width, channels = shape
    header = struct.pack(">IIBBBBB", width, height, 8 * dtype.itemsize, _COLOUR_TYPE[channels], 0, 0, 0)
    stream.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header))
    if icc is not None:
        stream.write(chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if dpi is not None:
        per_metre = [round(value / 0.0254) for value in dpi]
        stream.write(chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if exif is not None:
        stream.write(chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    checksum = 1
    row_bytes = width * channels * dtype.itemsize
    ahead = max(1, min(AHEAD, _AHEAD_BYTES // (block_rows(row_bytes) * row_bytes)))
    # A zlib stream (RFC 1950) around the blocks' deflate.
    lead = b"\x78\x01"
    for block in in_order(_led(blocks, height), _compressed, min(_THREADS, cpu_threads()), ahead):
        checksum = _adler32_joined(checksum, block.checksum, block.length)
        stream.write(chunk(b"IDAT", lead + block.data))
        lead = b""
        yield block.rows
    stream.write(chunk(b"IDAT", struct.pack(">I", checksum)))
    stream.write(chunk(b"IEND", b""))


@dataclass(frozen=True, eq=False)
class _Piece:
    """Rows [h, W, C] of a picture, the row above them (zeros at the top), and whether they are the last."""

    above: Array
    block: Array
    last: bool


@dataclass(frozen=True, eq=False)
class _Deflated:
    """Rows as deflated bytes, with the Adler-32 and the number of the bytes before."""

    data: bytes
    checksum: int
    length: int
    rows: int


def _led(blocks: Iterator[Array], height: int) -> Iterator[_Piece]:
    """Give each block the row above it."""
    done = 0
    above: Array | None = None
    for block in blocks:
        done += len(block)
        yield _Piece(np.zeros_like(block[:1]) if above is None else above, block, last=done == height)
        above = block[-1:]


def _compressed(piece: _Piece) -> _Deflated:
    block = piece.block
    filtered = _filtered(_bytes(piece.above), _bytes(block), block.shape[2] * block.itemsize)
    data = deflate.block(filtered.data, last=piece.last)
    return _Deflated(data, deflate.adler32(filtered.data), filtered.size, len(block))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk: length, type, data and the CRC-32 of type and data."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", deflate.crc32(data, deflate.crc32(kind)))


def _bytes(block: Array) -> Array:
    """Return rows as bytes [rows, W * pixel_bytes], samples interleaved and big-endian."""
    if block.dtype == np.uint16:
        block = block.astype(">u2")
    return np.ascontiguousarray(block).view(np.uint8).reshape(len(block), -1)


def _filtered(row_above: Array, lines: Array, pixel_bytes: int) -> Array:
    """Return the lines led by their filter's number: Sub, Up or Average, whichever leaves the smallest residuals."""
    above = np.concatenate((row_above, lines[:-1]))
    left = np.zeros_like(lines)
    left[:, pixel_bytes:] = lines[:, :-pixel_bytes]
    # floor((left + above) / 2) without leaving 8 bits
    average = (left & above) + ((left ^ above) >> 1)
    residuals = (lines - left, lines - above, lines - average)
    cost = np.stack([np.minimum(values, 0 - values).sum(axis=1, dtype=np.uint32) for values in residuals])
    best = cost.argmin(axis=0)
    result = np.empty((lines.shape[0], lines.shape[1] + 1), np.uint8)
    result[:, 0] = best + 1
    for index, values in enumerate(residuals):
        chosen = best == index
        if chosen.all():
            result[:, 1:] = values
        else:
            result[chosen, 1:] = values[chosen]
    return result


def _adler32_joined(first: int, second: int, second_length: int) -> int:
    """Return the Adler-32 of two pieces joined, from theirs (RFC 1950, section 9)."""
    low = (first & 0xFFFF) + (second & 0xFFFF) - 1
    high = (first >> 16) + (second >> 16) + second_length * ((first & 0xFFFF) - 1)
    return high % _ADLER_MODULUS << 16 | low % _ADLER_MODULUS
