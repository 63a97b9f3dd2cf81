"""TIFF of 8 and 16 bits and float, one page in strips, by tifffile. Pillow writes no 16-bit or float colour."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import tifffile

from tilefuse.images.metadata import exif_texts

Array = np.ndarray[Any, np.dtype[Any]]

_STRIP_BYTES = 1 << 20
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
) -> None:
    """Write uint8, uint16 or float32 `pixels` [H, W, 1 or 3] and straight `alpha` [H, W] losslessly.

    `icc` and `dpi` (dots per inch) become tags, and so do the texts of `exif` (starting with b"Exif\\0\\0"): camera,
    software, time, people. Its other entries are left out. BigTIFF when the samples come near 4 GiB.
    """
    samples = pixels if alpha is None else np.concatenate((pixels, alpha[..., None]), axis=2)
    height, width, channels = samples.shape
    texts = {} if exif is None else exif_texts(exif)[0]
    options: dict[str, Any] = {} if dpi is None else {"resolution": dpi, "resolutionunit": "INCH"}
    with tifffile.TiffWriter(stream, bigtiff=samples.nbytes > _CLASSIC_BYTES, byteorder="<") as writer:
        writer.write(
            samples if channels > 1 else samples[..., 0],
            photometric="rgb" if pixels.shape[2] == 3 else "minisblack",
            planarconfig="contig" if channels > 1 else None,
            extrasamples=None if alpha is None else ["unassalpha"],
            rowsperstrip=min(height, max(1, _STRIP_BYTES // (width * channels * samples.itemsize))),
            compression="adobe_deflate",
            compressionargs={"level": 1},
            # The predictor of floats is not one that every reader knows.
            predictor=samples.dtype.kind == "u",
            iccprofile=icc,
            extratags=[(tag, _ASCII, len(text), text, True) for tag, text in texts.items()],
            metadata=None,
            software=False,
            **options,
        )
