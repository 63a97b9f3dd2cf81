"""NumPy's .npy format: rasters of the simplest kind, and the form in which unfinished results are kept."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from tilefuse.errors import ImageError
from tilefuse.storage.base import Alpha, Array, RasterInfo
from tilefuse.storage.flat import FlatRaster

_ALPHA_BANDS = (2, 4)


class NpyReader:
    """Windows of an array [H, W] or [H, W, C]; 2 and 4 channels end in straight alpha."""

    def __init__(self, path: Path) -> None:
        self._stream = open(path, "rb")  # noqa: SIM115 - the reader owns it until close
        try:
            shape, dtype = _header(self._stream)
            offset = self._stream.tell()
            stored = os.fstat(self._stream.fileno()).st_size - offset
            if stored < int(np.prod(shape, dtype=object)) * dtype.itemsize:
                raise ImageError(f"it declares an array {list(shape)} of {dtype} and holds {stored} bytes of it")
            rows, columns, bands = shape
            alpha: Alpha = "straight" if bands in _ALPHA_BANDS else "none"
            self.info = RasterInfo(rows, columns, bands, dtype.newbyteorder("="), alpha)
        except BaseException:
            self._stream.close()
            raise
        self._raster = FlatRaster(self._stream.fileno(), offset, shape, dtype)

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return a window."""
        return self._raster.read(y0, y1, x0, x1)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def npy_header(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> bytes:
    """Return what comes before the samples of [H, W, bands]; one band is written as [H, W]."""
    stream = BytesIO()
    plain = shape if shape[2] > 1 else shape[:2]
    np.lib.format.write_array_header_2_0(
        stream, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": plain}
    )
    return stream.getvalue()


def _header(stream: Any) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        reader = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(version[0])
        if reader is None:
            raise ImageError(f"it is .npy of version {version[0]}; expected 1 or 2")
        shape, fortran, dtype = reader(stream)
    except (ValueError, TokenError, SyntaxError, TypeError, KeyError, EOFError) as error:
        raise ImageError(f"its .npy header is damaged ({str(error).splitlines()[0]})") from error
    if fortran or dtype.hasobject or len(shape) not in (2, 3):
        layout = "columns first" if fortran else f"{dtype} {list(shape)}"
        raise ImageError(f"it holds an array of {layout}; expected [H, W] or [H, W, C] of numbers, rows first")
    return (shape[0], shape[1], shape[2] if len(shape) == 3 else 1), dtype
