"""A raster of cores: any part of it reads back, whatever cores it lies in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tilefuse.errors import ImageError
from tilefuse.storage.cells import CellRaster
from tilefuse.tiling import Grid, Span

ROWS = (Span(0, 9, 0, 4, 0), Span(4, 13, 4, 8, 0), Span(8, 17, 8, 11, 0))
COLUMNS = (Span(0, 9, 0, 5, 0), Span(5, 14, 5, 13, 0), Span(9, 18, 13, 14, 0))
GRID = Grid(11, 14, (11, 14), (9, 9), (11, 14), ROWS, COLUMNS)


def store(raster: CellRaster, pixels: np.ndarray, indices: list[int]) -> None:
    for index in indices:
        y, x = GRID[index].y, GRID[index].x
        raster.write(y.core_start, x.core_start, pixels[y.core_start : y.core_stop, x.core_start : x.core_stop])


@pytest.mark.parametrize(("dtype", "bands"), [("uint8", 3), ("uint16", 1), ("float32", 4)])
def test_every_part_reads_back(tmp_path: Path, dtype: str, bands: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 250, (11, 14, bands)).astype(dtype)
    with open(tmp_path / "raster", "w+b") as stream:
        raster = CellRaster(stream.fileno(), GRID, bands, np.dtype(dtype))
        store(raster, pixels, rng.permutation(9).tolist())
        assert (tmp_path / "raster").stat().st_size == pixels.nbytes
        for _ in range(200):
            y0, x0 = int(rng.integers(0, 11)), int(rng.integers(0, 14))
            y1, x1 = int(rng.integers(y0 + 1, 12)), int(rng.integers(x0 + 1, 15))
            read = raster.read(y0, y1, x0, x1)
            assert read.dtype == pixels.dtype
            assert np.array_equal(read, pixels[y0:y1, x0:x1]), (y0, y1, x0, x1)


def test_a_core_is_stored_by_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    original = os.pwrite

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        written.append(position)
        return original(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with open(tmp_path / "raster", "w+b") as stream:
        raster = CellRaster(stream.fileno(), GRID, 3, np.dtype(np.uint8))
        store(raster, np.zeros((11, 14, 3), np.uint8), list(range(9)))
    assert written == [3 * start for start in (0, 20, 52, 56, 76, 108, 112, 127, 151)]


def test_a_part_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    with open(tmp_path / "raster", "w+b") as stream:
        raster = CellRaster(stream.fileno(), GRID, 1, np.dtype(np.uint8))
        store(raster, np.ones((11, 14, 1), np.uint8), [0])
        assert raster.read(1, 4, 2, 5).all()
        with pytest.raises(ImageError, match="it ends in row 2 of 11"):
            raster.read(2, 4, 4, 6)
