"""TIFF of 8 and 16 bits and float, one page in strips. Pillow writes no 16-bit or float colour.

Format: TIFF 6.0 with Adobe Deflate (TIFF Technical Note, 2002), horizontal differencing for integers; BigTIFF (64-bit
offsets) when the pixels alone come near the 4 GiB a classic TIFF can address.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_STRIP_BYTES = 1 << 20
_CLASSIC_BYTES = 4_000_000_000
_SHORT, _LONG, _RATIONAL, _UNDEFINED, _LONG8 = 3, 4, 5, 7, 16
_CODES = {_SHORT: "H", _LONG: "I", _RATIONAL: "I", _LONG8: "Q"}

Entry = tuple[int, int, int, bytes]


def write_tiff(
    stream: BinaryIO,
    pixels: Array,
    alpha: Array | None = None,
    *,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    exif: bytes | None = None,
    big: bool | None = None,
) -> None:
    """Write uint8, uint16 or float32 `pixels` [H, W, 1 or 3] and straight `alpha` [H, W] losslessly.

    `icc` and `dpi` (dots per inch) become tags; `exif` (starting with b"Exif\\0\\0", little-endian) keeps its
    directories, except in BigTIFF, where it is left out. `big` asks for BigTIFF; None decides by size.
    """
    height, width, channels = pixels.shape
    channels += alpha is not None
    if big is None:
        big = height * width * channels * pixels.itemsize > _CLASSIC_BYTES
    # An EXIF block is a TIFF file without a picture: beginning with it keeps all its offsets valid.
    block = exif.removeprefix(b"Exif\0\0") if exif is not None and not big else b""
    descriptive = _directory(block) if block else []
    if not block:
        block = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big else struct.pack("<2sHI", b"II", 42, 0)
    stream.write(block)

    rows = max(1, _STRIP_BYTES // (width * channels * pixels.itemsize))
    offsets, counts = [], []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        strips = pool.map(lambda top: _strip(pixels, alpha, top, top + rows), range(0, height, rows))
        for data in strips:
            offsets.append(stream.tell())
            counts.append(len(data))
            stream.write(data)

    offset_type = _LONG8 if big else _LONG
    entries = [
        *descriptive,
        _entry(256, _LONG, [width]),
        _entry(257, _LONG, [height]),
        _entry(258, _SHORT, [8 * pixels.itemsize] * channels),
        _entry(259, _SHORT, [8]),
        _entry(262, _SHORT, [1 if pixels.shape[2] == 1 else 2]),
        _entry(273, offset_type, offsets),
        _entry(277, _SHORT, [channels]),
        _entry(278, _LONG, [rows]),
        _entry(279, offset_type, counts),
        _entry(284, _SHORT, [1]),
        _entry(317, _SHORT, [1 if pixels.dtype.kind == "f" else 2]),
        _entry(339, _SHORT, [3 if pixels.dtype.kind == "f" else 1] * channels),
    ]
    if alpha is not None:
        entries.append(_entry(338, _SHORT, [2]))
    if dpi is not None:
        for tag, value in zip((282, 283), dpi, strict=True):
            ratio = Fraction(value).limit_denominator(10_000)
            entries.append(_entry(tag, _RATIONAL, [ratio.numerator, ratio.denominator]))
        entries.append(_entry(296, _SHORT, [2]))
    if icc is not None:
        entries.append((34675, _UNDEFINED, len(icc), icc))
    _write_directory(stream, entries, big)


def _strip(pixels: Array, alpha: Array | None, top: int, bottom: int) -> bytes:
    strip = pixels[top:bottom]
    if alpha is not None:
        strip = np.concatenate((strip, alpha[top:bottom, :, None]), axis=2)
    if strip.dtype.kind == "u":
        differences = strip.copy()
        differences[:, 1:] -= strip[:, :-1]
        strip = differences
    # Low bytes of 16-bit and float samples are noise: run lengths compress them as well as matches, 2x faster.
    strategy = zlib.Z_DEFAULT_STRATEGY if strip.itemsize == 1 else zlib.Z_RLE
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    little = np.ascontiguousarray(strip, strip.dtype.newbyteorder("<"))
    return deflate.compress(little.view(np.uint8).data) + deflate.flush()


def _entry(tag: int, kind: int, values: Sequence[int]) -> Entry:
    count = len(values) // 2 if kind == _RATIONAL else len(values)
    return tag, kind, count, struct.pack(f"<{len(values)}{_CODES[kind]}", *values)


def _directory(block: bytes) -> list[Entry]:
    """Return the entries of an EXIF block's first directory; values longer than 4 bytes stay offsets into the block."""
    (start,) = struct.unpack_from("<I", block, 4)
    (count,) = struct.unpack_from("<H", block, start)
    fields = (struct.unpack_from("<HHI4s", block, start + 2 + 12 * index) for index in range(count))
    return [(tag, kind, length, value) for tag, kind, length, value in fields]


def _write_directory(stream: BinaryIO, entries: list[Entry], big: bool) -> None:
    """Write values that do not fit their entries, then the directory, and point the file's header to it."""
    inline, word = (8, "Q") if big else (4, "I")
    packed = []
    for tag, kind, count, data in sorted(entries):
        value = data
        if len(data) > inline:
            stream.write(b"\0" * (stream.tell() % 2))
            value = struct.pack(f"<{word}", stream.tell())
            stream.write(data)
        packed.append(struct.pack(f"<HH{word}", tag, kind, count) + value.ljust(inline, b"\0"))
    stream.write(b"\0" * (stream.tell() % 2))
    start = stream.tell()
    stream.write(struct.pack("<Q" if big else "<H", len(packed)) + b"".join(packed) + struct.pack(f"<{word}", 0))
    stream.seek(8 if big else 4)
    stream.write(struct.pack(f"<{word}", start))
    stream.seek(0, os.SEEK_END)
