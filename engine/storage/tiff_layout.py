"""The chain of TIFF directories, walked by hand before a library sees the file: cheap, bounded, and never in circles.

Format: TIFF 6.0 (Adobe, 1992), BigTIFF (https://www.awaresystems.be/imaging/tiff/bigtiff.html).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tilefuse.errors import ImageError
from tilefuse.storage.base import MAX_CHUNK_BYTES

_MAX_DIRECTORIES = 10_000
_MAX_TAGS = 4096
_SIZES = {1: "B", 3: "H", 4: "L", 16: "Q"}
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS = 254, 256, 257, 258, 259, 277, 278
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_REDUCED_OR_MASK = 5


@dataclass(frozen=True)
class TiffLayout:
    """What the directories declare: size of the first image, its samples, and how many full images there are."""

    tiled: bool
    pages: int
    height: int
    width: int
    samples: int
    sample_bytes: int


def read_layout(path: Path) -> TiffLayout:
    """Walk the directories.

    Raises:
        ImageError: a cycle, a directory outside the file, no size, or tiles past any reason.
    """
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise ImageError("it is no TIFF file")
        big = struct.unpack(order + "H", head[2:4])[0] == 43
        position = struct.unpack_from(order + ("Q" if big else "L"), head.ljust(16, b"\0"), 8 if big else 4)[0]
        seen: set[int] = set()
        images: list[dict[int, int]] = []
        while position:
            if position in seen:
                raise ImageError("its directories form a cycle; the file is damaged")
            if position >= size or len(seen) >= _MAX_DIRECTORIES:
                raise ImageError(
                    f"directory {len(seen)} lies at byte {position} of {size}; the file is damaged or truncated"
                )
            seen.add(position)
            tags, position = _directory(stream, position, order, big)
            if not tags.get(_SUBFILE, 0) & _REDUCED_OR_MASK:
                images.append(tags)
    if not images:
        raise ImageError("it holds no full image")
    first = images[0]
    _check_tiles(first)
    return TiffLayout(
        _TILE_WIDTH in first,
        len(images),
        first.get(_HEIGHT, 0),
        first.get(_WIDTH, 0),
        first.get(_SAMPLES, 1),
        _sample_bytes(first),
    )


def _sample_bytes(tags: dict[int, int]) -> int:
    return max(1, tags.get(_BITS, 8) // 8)


def _check_tiles(tags: dict[int, int]) -> None:
    width, height = tags.get(_TILE_WIDTH), tags.get(_TILE_HEIGHT)
    if width is None and height is None:
        return
    if not width or not height:
        raise ImageError(f"its tiles are declared as {width} x {height} px; the file is damaged")
    nbytes = width * height * tags.get(_SAMPLES, 1) * _sample_bytes(tags)
    if nbytes > MAX_CHUNK_BYTES:
        raise ImageError(
            f"its tiles are declared as {width} x {height} px, {nbytes} bytes each; {MAX_CHUNK_BYTES} are accepted. "
            "Write it with smaller tiles"
        )


def _directory(stream: BinaryIO, position: int, order: str, big: bool) -> tuple[dict[int, int], int]:
    """Return the first value of each integer tag that matters here, and where the next directory is."""
    stream.seek(position)
    count_bytes, entry_bytes, word = (8, 20, "Q") if big else (2, 12, "L")
    head = stream.read(count_bytes)
    count = struct.unpack(order + ("Q" if big else "H"), head)[0] if len(head) == count_bytes else _MAX_TAGS + 1
    if count > _MAX_TAGS:
        raise ImageError(f"the directory at byte {position} declares {count} tags; the file is damaged")
    word_bytes = struct.calcsize(order + word)
    data = stream.read(count * entry_bytes + word_bytes)
    if len(data) < count * entry_bytes + word_bytes:
        raise ImageError(f"the directory at byte {position} is cut short; the file is truncated")
    tags: dict[int, int] = {}
    for start in range(0, count * entry_bytes, entry_bytes):
        tag, kind, length = struct.unpack_from(order + "HH" + word, data, start)
        code = _SIZES.get(kind)
        if code is None or length == 0:
            continue
        inline = start + 4 + word_bytes
        if struct.calcsize(order + code) * length <= word_bytes:
            tags[tag] = struct.unpack_from(order + code, data, inline)[0]
        elif tag == _BITS:
            place = struct.unpack_from(order + word, data, inline)[0]
            stream.seek(place)
            value = stream.read(2)
            tags[tag] = struct.unpack(order + "H", value)[0] if len(value) == 2 else 8
    return tags, struct.unpack_from(order + word, data, count * entry_bytes)[0]
