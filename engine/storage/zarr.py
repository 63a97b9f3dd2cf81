"""Zarr arrays of versions 2 and 3, and OME-Zarr's first resolution level."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tilefuse.errors import ImageError, UsageError
from tilefuse.storage.base import MAX_CHUNK_BYTES, Alpha, Array, Raster, RasterInfo
from tilefuse.storage.flat import disk_errors
from tilefuse.storage.tiff_encode import CancelledError

_CHUNK_PX = 512
_READ_BYTES = 6 << 20
# A window may touch four chunks, which the library decodes at once, each beside its compressed bytes.
_CHUNKS_AT_ONCE = 4
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup")
_MAX_METADATA_BYTES = 16 << 20
_CHANNELS = (1, 2, 3, 4)


class ZarrReader:
    """Windows of a two- or three-dimensional array; other axes must be of length 1."""

    def __init__(self, path: Path) -> None:
        _check_metadata(path)
        zarr = _load()
        try:
            found = zarr.open(str(path), mode="r")
            self._array, names = _first_level(zarr, found)
        except ImageError:
            raise
        except Exception as error:
            # The library raises its own and codecs' errors of many kinds for damaged metadata.
            raise ImageError(f"it is no Zarr array that can be opened ({' '.join(str(error).split())})") from error
        array = self._array
        self._y, self._x, self._c = _axes(tuple(array.shape), names)
        nbytes = int(np.prod(array.chunks, dtype=object)) * array.dtype.itemsize
        if nbytes > MAX_CHUNK_BYTES:
            raise ImageError(f"its chunks are of {nbytes} bytes; {MAX_CHUNK_BYTES} are accepted. Rechunk it first")
        bands = 1 if self._c is None else array.shape[self._c]
        alpha: Alpha = "straight" if bands in (2, 4) else "none"
        dtype = np.dtype(array.dtype).newbyteorder("=")
        height, width = array.shape[self._y], array.shape[self._x]
        count = int(
            np.prod([-(-size // edge) for size, edge in zip(array.shape, array.chunks, strict=True)], dtype=object)
        )
        self.info = RasterInfo(
            height, width, bands, dtype, alpha, decoded_bytes=2 * min(_CHUNKS_AT_ONCE, count) * nbytes
        )

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return a window. Raises ImageError that names the damaged part."""
        index: list[Any] = [0] * len(self._array.shape)
        index[self._y], index[self._x] = slice(y0, y1), slice(x0, x1)
        if self._c is not None:
            index[self._c] = slice(None)
        try:
            block = np.asarray(self._array[tuple(index)])
        except Exception as error:
            # Stores and codecs raise errors of many kinds for a damaged chunk.
            raise ImageError(
                f"a chunk in rows {y0} to {y1}, columns {x0} to {x1} is damaged ({' '.join(str(error).split())})"
            ) from error
        if self._c is None:
            block = block[..., None]
        elif self._c < self._y:
            block = np.moveaxis(block, 0, -1)
        return block.astype(self.info.dtype, copy=False)

    def close(self) -> None:
        """Nothing is held open."""


def encode_zarr(raster: Raster, info: RasterInfo, target: Path, cancelled: Callable[[], bool]) -> None:
    """Write a Zarr v3 array [H, W] or [H, W, C] in chunks of 512 x 512 px, zstd."""
    zarr = _load()
    shape = (info.height, info.width, info.bands) if info.bands > 1 else (info.height, info.width)
    chunks = (min(_CHUNK_PX, info.height), min(_CHUNK_PX, info.width), info.bands)[: len(shape)]
    with disk_errors("the result"):
        array = zarr.create_array(
            store=str(target),
            shape=shape,
            chunks=chunks,
            dtype=info.dtype.name,
            dimension_names=("y", "x", "c")[: len(shape)],
            overwrite=True,
        )
        step = chunks[1] * max(1, _READ_BYTES // (chunks[0] * chunks[1] * info.bands * info.dtype.itemsize))
        for top in range(0, info.height, chunks[0]):
            bottom = min(top + chunks[0], info.height)
            for left in range(0, info.width, step):
                if cancelled():
                    raise CancelledError
                right = min(left + step, info.width)
                block = raster.read(top, bottom, left, right)
                array[top:bottom, left:right] = block if info.bands > 1 else block[..., 0]


def _load() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise UsageError("Zarr needs the zarr library; pip install 'tilefuse[huge]'") from error
    return zarr


def _check_metadata(path: Path) -> None:
    """Refuse codecs that run code; metadata is read by hand because opening an array builds its codecs."""
    files = [path / name for name in _METADATA]
    files += [entry / name for entry in islice(path.iterdir(), 100) if entry.is_dir() for name in _METADATA]
    present = [file for file in files if file.is_file()]
    if not any(file.name in ("zarr.json", ".zarray") for file in present):
        raise ImageError("it is a directory without Zarr metadata (zarr.json or .zarray); give a Zarr array")
    for file in present:
        if file.stat().st_size > _MAX_METADATA_BYTES:
            raise ImageError(f"its {file.name} is of {file.stat().st_size} bytes; that is no honest metadata")
        try:
            content = json.loads(file.read_bytes())
        except ValueError as error:
            raise ImageError(f"its {file.name} is damaged ({error})") from error
        if "pickle" in json.dumps(content).lower():
            raise ImageError("it names a codec that unpickles, which runs code; write it with plain numbers")


def _first_level(zarr: Any, found: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the array to read and the names of its axes, if it has any."""
    if isinstance(found, zarr.Array):
        names = getattr(found.metadata, "dimension_names", None) or found.attrs.get("_ARRAY_DIMENSIONS", ())
        return found, tuple(str(name) for name in names)
    attributes = found.attrs.asdict()
    scales = attributes.get("ome", attributes).get("multiscales")
    if scales:
        names = tuple(axis["name"] if isinstance(axis, dict) else str(axis) for axis in scales[0].get("axes", ()))
        return found[scales[0]["datasets"][0]["path"]], names
    arrays = list(islice((array for _, array in found.arrays()), 2))
    if len(arrays) != 1:
        raise ImageError("it is a Zarr group without one image in it; name the array inside, IN.zarr/NAME")
    return arrays[0], ()


def _axes(shape: tuple[int, ...], names: tuple[str, ...]) -> tuple[int, int, int | None]:
    """Return the positions of rows, columns and bands."""
    lower = [name.lower() for name in names]
    if len(lower) == len(shape) and "y" in lower and "x" in lower:
        y, x = lower.index("y"), lower.index("x")
        rest = [axis for axis in range(len(shape)) if axis not in (y, x)]
        wide = [axis for axis in rest if shape[axis] > 1 or lower[axis] in ("c", "channel", "band")]
        if len([axis for axis in wide if shape[axis] > 1]) > 1 or x != y + 1:
            raise ImageError(f"its axes are {', '.join(names)} of {list(shape)}; expected one image")
        band = max(wide, key=lambda axis: shape[axis]) if wide else None
        return y, x, band
    if len(shape) == 2:
        return 0, 1, None
    if len(shape) == 3 and shape[2] in _CHANNELS:
        return 0, 1, 2
    if len(shape) == 3 and shape[0] in _CHANNELS:
        return 1, 2, 0
    raise ImageError(f"it is an array {list(shape)} without named axes; expected [H, W], [H, W, C] or [C, H, W]")
