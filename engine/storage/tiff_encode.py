"""Tiled TIFF from a finished raster; BigTIFF where the samples pass what classic TIFF can address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tilefuse.deflate import tile_packer
from tilefuse.images.metadata import exif_texts
from tilefuse.ordered import in_order
from tilefuse.storage.base import Array, Raster, RasterInfo
from tilefuse.storage.flat import disk_errors
from tilefuse.storage.pyramid import level_count, levels

TILE_PX = 256
_BAND_BYTES = 8 << 20
_THREADS = 2
# Classic TIFF has 32-bit offsets; directories and incompressible samples need some room below.
BIG_BYTES = 3_900_000_000
_CODECS: dict[str, tuple[str | None, dict[str, int] | None]] = {
    "deflate": ("zlib", {"level": 1}),
    "zstd": ("zstd", {"level": 3}),
    "none": (None, None),
}
COMPRESSIONS = tuple(_CODECS)
_DESCRIPTION, _ASCII = 270, 2


class CancelledError(Exception):
    """Encoding was asked to stop; the run turns it into the reason it stopped for."""


def encode_tiff(
    raster: Raster,
    info: RasterInfo,
    target: Path,
    compression: str,
    cancelled: Callable[[], bool],
    *,
    pyramid: bool = False,
) -> None:
    """Write `info`'s raster in tiles of 256 x 256 px, deflate, zstd or uncompressed.

    With `pyramid` reduced copies follow, each half the size of the one before: as sub-images of an OME image, where its
    viewers look for them, else as further directories, where GDAL does.
    """
    import tifffile

    codec, arguments = _CODECS[compression]
    metadata = info.metadata
    colour = info.bands - (info.alpha != "none")
    rgb = colour == 3 and info.bands in (3, 4)
    extra = info.bands - (3 if rgb else 1)
    kinds = ["unspecified"] * extra
    if info.alpha != "none" and kinds:
        kinds[-1] = "unassalpha"
    options: dict[str, Any] = {}
    if metadata.dpi is not None:
        options |= {"resolution": metadata.dpi, "resolutionunit": "INCH"}
    if info.value_range is not None and info.dtype.kind == "f":
        low, high = info.value_range
        options["extratags"] = [(340, 11, info.bands, (low,) * info.bands), (341, 11, info.bands, (high,) * info.bands)]
    geo = [
        (number, kind, len(value[0]) + 1 if isinstance(value[0], str) else len(value), _plain(value), True)
        for number, kind, value in metadata.geo
    ]
    texts = {} if metadata.exif is None else exif_texts(metadata.exif)[0]
    if metadata.ome:
        # A description of its own, where OME keeps its header.
        texts.pop(_DESCRIPTION, None)
    exif = [(number, _ASCII, len(text), text, True) for number, text in texts.items()]
    options["extratags"] = [*((*tag, True) for tag in options.get("extratags", [])), *geo, *exif]
    layout: dict[str, Any] = {
        "dtype": info.dtype,
        "tile": (TILE_PX, TILE_PX),
        "photometric": "rgb" if rgb else "minisblack",
        "planarconfig": "contig" if info.bands > 1 else None,
        "extrasamples": kinds or None,
        "compression": codec,
        "compressionargs": arguments,
        "predictor": codec is not None,
        "metadata": None,
        "software": False,
        "maxworkers": _THREADS,
        "buffersize": _BAND_BYTES,
    }
    nested = level_count(info.height, info.width) if pyramid and metadata.ome else None
    size = info.nbytes * 4 // 3 if pyramid else info.nbytes

    pack = tile_packer(info.dtype) if compression == "deflate" else None

    def check() -> None:
        if cancelled():
            raise CancelledError

    def data(level: Raster, described: RasterInfo) -> Iterator[Array] | Iterator[bytes]:
        tiles = _tiles(level, described, check)
        # The packer makes arrays of its own out of any.
        return map(np.ascontiguousarray, tiles) if pack is None else in_order(tiles, pack, _THREADS)

    with (
        disk_errors("the result"),
        tifffile.TiffWriter(target, bigtiff=size > BIG_BYTES, byteorder="<") as writer,
    ):
        writer.write(
            data(raster, info),
            shape=_shape(info),
            iccprofile=metadata.icc,
            description=metadata.ome.encode() if metadata.ome else None,
            subifds=nested,
            **layout,
            **options,
        )
        if pyramid:
            with levels(raster, info, target.absolute().parent, check) as reduced:
                for level, described in reduced:
                    writer.write(data(level, described), shape=_shape(described), subfiletype=1, **layout)


def _shape(info: RasterInfo) -> tuple[int, ...]:
    return (info.height, info.width, info.bands) if info.bands > 1 else (info.height, info.width)


def _plain(value: tuple[Any, ...]) -> Any:
    return value[0] if len(value) == 1 else value


def _tiles(raster: Raster, info: RasterInfo, check: Callable[[], None]) -> Iterator[Array]:
    """Give the tiles in order, reading several at once: the rows of a wide strip lie together in the raster."""
    row_bytes = TILE_PX * info.bands * info.dtype.itemsize
    columns = max(1, _BAND_BYTES // (TILE_PX * row_bytes)) * TILE_PX
    for top in range(0, info.height, TILE_PX):
        bottom = min(top + TILE_PX, info.height)
        for left in range(0, info.width, columns):
            check()
            band = raster.read(top, bottom, left, min(left + columns, info.width))
            for start in range(0, band.shape[1], TILE_PX):
                tile = band[:, start : start + TILE_PX]
                missing = (TILE_PX - tile.shape[0], TILE_PX - tile.shape[1])
                full = np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else tile
                yield full if info.bands > 1 else full[..., 0]
