"""Images larger than memory: readers that give windows, a raster that takes them in any order, encoders from it."""

from __future__ import annotations

from tilefuse.storage.base import Metadata, RasterInfo, RasterReader, RasterWriter
from tilefuse.storage.registry import check_target, encode, is_raster_name, open_raster, probe

__all__ = [
    "Metadata",
    "RasterInfo",
    "RasterReader",
    "RasterWriter",
    "check_target",
    "encode",
    "is_raster_name",
    "open_raster",
    "probe",
]
