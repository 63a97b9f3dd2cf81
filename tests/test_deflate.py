"""What ISA-L deflates any reader inflates: tiles of TIFF, blocks of PNG."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from tilefuse import deflate
from tilefuse.storage.base import RasterInfo
from tilefuse.storage.flat import FlatRaster
from tilefuse.storage.tiff_encode import encode_tiff

tifffile = pytest.importorskip("tifffile")


def encoded(pixels: np.ndarray, folder: Path, *, pyramid: bool = False) -> Path:
    with open(folder / "raster", "w+b") as stream:
        raster = FlatRaster(stream.fileno(), 0, pixels.shape, pixels.dtype)
        raster.write(0, 0, pixels)
        target = folder / "out.tif"
        encode_tiff(raster, RasterInfo(*pixels.shape, pixels.dtype), target, "deflate", lambda: False, pyramid=pyramid)
    return target


@pytest.mark.parametrize("with_isal", [True, False])
@pytest.mark.parametrize(("dtype", "bands"), [("uint8", 3), ("uint16", 1), ("uint16", 4), ("float32", 3)])
def test_a_result_reads_back(
    tmp_path: Path, dtype: str, bands: int, with_isal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_isal:
        pytest.importorskip("isal")
    else:
        pytest.importorskip("imagecodecs")
        monkeypatch.setattr(deflate, "isal_zlib", None)
    pixels = np.random.default_rng(0).integers(0, 60_000, (300, 520, bands)).astype(dtype)
    with tifffile.TiffFile(encoded(pixels, tmp_path, pyramid=True)) as file:
        assert (int(file.pages[0].compression), int(file.pages[0].predictor)) == (8, 3 if dtype == "float32" else 2)
        assert np.array_equal(file.pages[0].asarray().reshape(pixels.shape), pixels)
        assert [page.shape[:2] for page in file.pages] == [(300, 520), (150, 260), (75, 130)]


def test_smooth_samples_take_less_space_by_their_differences(tmp_path: Path) -> None:
    pytest.importorskip("isal")
    ramp = np.add.outer(np.arange(300) * 7, np.arange(520) * 5).astype(np.uint8)[..., None]
    assert encoded(ramp, tmp_path).stat().st_size < ramp.size // 20


def test_checksums_are_crc_32_with_and_without_isal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that was begun on one machine is gone on with on another."""
    data = memoryview(bytes(range(256)) * 50)
    assert deflate.crc32(data) == zlib.crc32(data)
    monkeypatch.setattr(deflate, "isal_zlib", None)
    assert deflate.crc32(data) == zlib.crc32(data)


@pytest.mark.parametrize("with_isal", [True, False])
@pytest.mark.parametrize("sizes", [(0,), (1,), (70_000, 0, 5), (1 << 20, 1 << 20)])
def test_blocks_joined_are_one_stream(sizes: tuple[int, ...], with_isal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_isal:
        pytest.importorskip("isal")
    else:
        monkeypatch.setattr(deflate, "isal_zlib", None)
    draw = np.random.default_rng(0)
    pieces = [draw.integers(0, 9, size).astype(np.uint8).tobytes() for size in sizes]
    blocks = [deflate.block(memoryview(piece), last=piece is pieces[-1]) for piece in pieces]
    assert zlib.decompress(b"".join(blocks), -zlib.MAX_WBITS) == b"".join(pieces)
    assert [deflate.adler32(piece) for piece in pieces] == [zlib.adler32(piece) for piece in pieces]
