"""TIFF of 8 and 16 bits and float, one page in strips, by tifffile. Pillow writes no 16-bit or float colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import tifffile

from tilefuse.deflate import tile_packer
from tilefuse.images.metadata import exif_texts
from tilefuse.images.rows import ALL_ROWS, Rows
from tilefuse.machine import cpu_threads
from tilefuse.ordered import in_order

Array = np.ndarray[Any, np.dtype[Any]]

_STRIP_BYTES = 1 << 20
_THREADS = 8
# Classic TIFF has 32-bit offsets; tags and incompressible samples need some room below.
_CLASSIC_BYTES = 4_000_000_000
_ASCII = 2


def write_tiff(
    stream: BinaryIO,
    pixels: Array,
    alpha: Array | None = None,
    *,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    exif: bytes | None = None,
    rows: Rows = ALL_ROWS,
) -> None:
    """Write uint8, uint16 or float32 `pixels` [H, W, 1 or 3] and straight `alpha` [H, W] losslessly.

    `icc` and `dpi` (dots per inch) become tags, and so do the texts of `exif` (starting with b"Exif\\0\\0"): camera,
    software, time, people. Its other entries are left out. BigTIFF when the samples come near 4 GiB. `rows` tells which
    pixels are there.
    """
    height, width, colours = pixels.shape
    channels = colours + (alpha is not None)
    row_bytes = width * channels * pixels.itemsize
    strip_rows = min(height, max(1, _STRIP_BYTES // row_bytes))
    texts = {} if exif is None else exif_texts(exif)[0]
    options: dict[str, Any] = {} if dpi is None else {"resolution": dpi, "resolutionunit": "INCH"}

    def samples(top: int, bottom: int) -> Array:
        block = pixels[top:bottom]
        if alpha is not None:
            block = np.concatenate((block, alpha[top:bottom, :, None]), axis=2)
        return block if channels > 1 else block[..., 0]

    def strips() -> Iterator[Array]:
        for top in range(0, height, strip_rows):
            bottom = min(top + strip_rows, height)
            rows.wait(bottom)
            yield samples(top, bottom)

    def packed(pack: Callable[[Array], bytes]) -> Iterator[bytes]:
        for number, data in enumerate(in_order(strips(), pack, min(_THREADS, cpu_threads())), 1):
            rows.passed(min(number * strip_rows, height))
            yield data

    pack = tile_packer(pixels.dtype)
    if pack is None:
        rows.wait(height)
    with tifffile.TiffWriter(stream, bigtiff=height * row_bytes > _CLASSIC_BYTES, byteorder="<") as writer:
        writer.write(
            samples(0, height) if pack is None else packed(pack),
            shape=(height, width, channels) if channels > 1 else (height, width),
            dtype=pixels.dtype,
            photometric="rgb" if colours == 3 else "minisblack",
            planarconfig="contig" if channels > 1 else None,
            extrasamples=None if alpha is None else ["unassalpha"],
            rowsperstrip=strip_rows,
            compression="adobe_deflate",
            compressionargs={"level": 1},
            # The predictor of floats is not one that every reader knows.
            predictor=pixels.dtype.kind == "u",
            iccprofile=icc,
            extratags=[(tag, _ASCII, len(text), text, True) for tag, text in texts.items()],
            metadata=None,
            software=False,
            **options,
        )
