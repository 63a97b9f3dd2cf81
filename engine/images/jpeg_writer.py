"""JPEG of 8 bits, encoded in strips by several threads and joined by restart markers.

Written here because libjpeg uses one thread. At a restart marker a decoder forgets what came before, so strips that
were encoded by themselves decode to the same pixels as the image encoded as one.

Format: ITU-T T.81, sections B.2.2 (frame header), B.2.4.4 (restart interval) and E.1.4 (restart markers).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from tilefuse.images.modes import pillow_image
from tilefuse.images.rows import ALL_ROWS, Rows
from tilefuse.machine import cpu_threads
from tilefuse.ordered import in_order

Array = np.ndarray[Any, np.dtype[Any]]

# With no channel at a lower resolution, a unit of the code is a block of 8 x 8 pixels.
_BLOCK_PX = 8
_STRIP_PIXELS = 1 << 20
_MAX_INTERVAL = 65535
_THREADS = 8
_SOF, _SOS, _EOI = b"\xff\xc0", b"\xff\xda", b"\xff\xd9"


def write_jpeg(
    stream: BinaryIO,
    pixels: Array,
    *,
    quality: int,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    exif: bytes | None = None,
    rows: Rows = ALL_ROWS,
) -> None:
    """Write uint8 `pixels` [H, W, 1 or 3], colour at full resolution (4:4:4).

    `exif` starts with b"Exif\\0\\0"; `dpi` is in dots per inch; `rows` tells which pixels are there.
    """
    height, width, _ = pixels.shape
    across = -(-width // _BLOCK_PX)
    block_rows = max(1, min(_STRIP_PIXELS // (_BLOCK_PX * width), _MAX_INTERVAL // across))
    strip_rows = _BLOCK_PX * block_rows
    options: dict[str, Any] = {"quality": quality, "subsampling": 0}
    described = {"icc_profile": icc, "dpi": dpi, "exif": exif, "restart_marker_rows": block_rows}
    described = {name: value for name, value in described.items() if value is not None}

    def tops() -> Iterator[int]:
        for top in range(0, height, strip_rows):
            rows.wait(min(top + strip_rows, height))
            yield top

    def encoded(top: int) -> bytes:
        return _encoded(pixels[top : top + strip_rows], options if top else options | described)

    for number, data in enumerate(in_order(tops(), encoded, min(_THREADS, cpu_threads()))):
        start = _scan_start(data)
        if number == 0:
            stream.write(_with_height(data[:start], height))
        else:
            stream.write(bytes((0xFF, 0xD0 + (number - 1) % 8)))
        stream.write(memoryview(data)[start : -len(_EOI)])
        rows.passed(min((number + 1) * strip_rows, height))
    stream.write(_EOI)


def _encoded(strip: Array, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    pillow_image(strip).save(stream, "JPEG", **options)
    return stream.getvalue()


def _scan_start(data: bytes) -> int:
    """Return where the coded blocks begin: after the header of the one scan."""
    place = _segment(data, _SOS)
    return place + 2 + int(struct.unpack_from(">H", data, place + 2)[0])


def _with_height(header: bytes, height: int) -> bytes:
    place = _segment(header, _SOF) + 5
    return header[:place] + struct.pack(">H", height) + header[place + 2 :]


def _segment(data: bytes, marker: bytes) -> int:
    """Return the place of a marker's segment, segment by segment: metadata may hold the same bytes."""
    place = 2
    while data[place : place + 2] != marker:
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return place
