"""What each encoder of a streamed result holds, as it was measured of the whole process."""

from __future__ import annotations

from tilefuse.images import FORMATS
from tilefuse.machine import cpu_threads

# libvips keeps so many rows: what its sequential cache and the two buffers of its writer take.
_VIPS_ROWS, _DEEP_ZOOM_ROWS = 900, 1800
_VIPS_BYTES, _TIFF_BYTES, _ZARR_BYTES = 20 << 20, 16 << 20, 12 << 20
# Rows that are read for the TIFF and for the Zarr encoder at once, what that may be at most, and how often it is held.
_TIFF_ROWS, _TIFF_BAND_BYTES, _TIFF_COPIES = 256, 8 << 20, 2
_ZARR_ROWS, _ZARR_BAND_BYTES, _ZARR_COPIES = 512, 6 << 20, 5
_PNG_BLOCK_BYTES, _PNG_AHEAD_BYTES, _PNG_THREADS, _PNG_BLOCKS_A_THREAD = 1 << 20, 16 << 20, 8, 12
# Of a small image no more copies than this exist.
_MOST_COPIES = 16


def encoder_bytes(suffix: str, shape: tuple[int, int, int], itemsize: int) -> int:
    """Return what encoding [height, width, bands] samples of `itemsize` bytes takes while windows are computed.

    An .npy result is the raster itself, and WebP is encoded once all windows are done: they take nothing meanwhile.
    """
    height, width, bands = shape
    row = width * bands * itemsize
    match FORMATS.get(suffix, suffix):
        case "PNG":
            # Blocks wait before and behind each thread. Float is rounded to 16 bits.
            block = max(_PNG_BLOCK_BYTES, width * bands * min(itemsize, 2))
            rows, own = _PNG_BLOCKS_A_THREAD * min(_PNG_THREADS, cpu_threads()) * block, _PNG_AHEAD_BYTES
        case "JPEG":
            rows, own = min(height, _VIPS_ROWS) * width * bands, _VIPS_BYTES
        case ".dzi":
            rows, own = _DEEP_ZOOM_ROWS * width * bands, _VIPS_BYTES
        case "TIFF":
            rows, own = _TIFF_COPIES * min(_TIFF_ROWS * row, _TIFF_BAND_BYTES), _TIFF_BYTES
        case ".zarr":
            rows, own = _ZARR_COPIES * min(_ZARR_ROWS * row, _ZARR_BAND_BYTES), _ZARR_BYTES
        case _:
            return 0
    return min(rows + own, _MOST_COPIES * height * row)
