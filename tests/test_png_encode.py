"""PNG from a finished raster: every bit of it, and no more of it in memory than a few blocks."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.pictures import noise
from tilefuse.errors import CapacityError
from tilefuse.images import png_writer, read_image
from tilefuse.ordered import AHEAD
from tilefuse.storage.base import Array, Metadata, RasterInfo
from tilefuse.storage.png_encode import encode_png
from tilefuse.storage.tiff_encode import CancelledError


class Held:
    """A raster in memory that counts what is read of it, and in how many threads."""

    def __init__(self, pixels: Array) -> None:
        self.pixels, self.shape = pixels, pixels.shape
        self.rows = 0
        self.threads: set[int] = set()

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        self.rows += y1 - y0
        self.threads.add(threading.get_ident())
        return self.pixels[y0:y1, x0:x1]


def info_of(pixels: Array, **options: object) -> RasterInfo:
    alpha = "straight" if pixels.shape[2] in (2, 4) else "none"
    return RasterInfo(*pixels.shape, pixels.dtype, alpha, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_every_bit_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, bands: int) -> None:
    monkeypatch.setattr(png_writer, "_BLOCK_BYTES", 33 * bands * 7)
    pixels = noise((61, 33, bands), dtype)
    raster = Held(pixels)
    described = info_of(pixels, metadata=Metadata(icc=b"profile", dpi=(300, 150)))
    encode_png(raster, described, tmp_path / "x.png", lambda: False)
    picture = read_image(tmp_path / "x.png")
    found = picture.pixels if picture.alpha is None else np.dstack((picture.pixels, picture.alpha))
    np.testing.assert_array_equal(found, pixels)
    assert picture.dpi == pytest.approx((300, 150), abs=0.02)
    # A raster that is still being made forgets what lies above the rows last read.
    assert (raster.rows, raster.threads) == (61, {threading.get_ident()})


def test_floats_become_16_bits_of_their_range(tmp_path: Path) -> None:
    pixels = np.array([[-3.0, -2.0, 0.0, 2.0, 3.0]], np.float32)[..., None]
    encode_png(Held(pixels), info_of(pixels, value_range=(-2.0, 2.0)), tmp_path / "x.png", lambda: False)
    assert read_image(tmp_path / "x.png").pixels.ravel().tolist() == [0, 0, 32768, 65535, 65535]


def test_rows_longer_than_a_block_wait_in_a_few_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder's share of the budget holds however wide the image is."""
    pixels = noise((80, 1000, 1), "uint8")
    taken: dict[str, int] = {}
    for name, ahead_bytes in (("few", 3000), ("many", 1 << 20)):
        monkeypatch.setattr(png_writer, "_BLOCK_BYTES", 100)
        monkeypatch.setattr(png_writer, "_AHEAD_BYTES", ahead_bytes)
        raster, counts = Held(pixels), list[int]()

        class Counting:
            def write(self, data: bytes) -> None:
                counts.append(raster.rows)  # noqa: B023 - used within the turn

        blocks = (raster.read(row, row + 1, 0, 1000) for row in range(80))
        written = 0
        for number in png_writer.write_png_blocks(Counting(), blocks, (80, 1000, 1), pixels.dtype, None, None, None):  # type: ignore[arg-type]
            written += number
            taken[name] = max(taken.get(name, 0), raster.rows - written)
    assert taken == {"few": 3, "many": AHEAD}


def test_cancelled_it_stops(tmp_path: Path) -> None:
    pixels = noise((61, 33, 3), "uint8")
    with pytest.raises(CancelledError):
        encode_png(Held(pixels), info_of(pixels), tmp_path / "x.png", lambda: True)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    pixels = noise((61, 33, 3), "uint8")
    with pytest.raises(CapacityError, match="no space left for the result"):
        encode_png(Held(pixels), info_of(pixels), Path("/dev/full"), lambda: False)
