"""A raster of cores: any part of it reads back, whatever cores it lies in."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tilefuse.errors import ImageError
from tilefuse.storage import cells
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


@pytest.fixture
def read_from_file(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the places that are read from files from now on."""
    places: list[int] = []
    original = cells.read_into

    def read_into(view: memoryview, descriptor: int, position: int) -> bool:
        places.append(position)
        return original(view, descriptor, position)

    monkeypatch.setattr(cells, "read_into", read_into)
    return places


def test_kept_cores_are_the_stored_ones_and_need_no_file(tmp_path: Path, read_from_file: list[int]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 250, (11, 14, 3), np.uint8)
    with open(tmp_path / "raster", "w+b") as stream:
        raster = CellRaster(stream.fileno(), GRID, 3, pixels.dtype, 9 * 96)
        store(raster, pixels, rng.permutation(9).tolist())
        for y0, y1, x0, x1 in ((0, 11, 0, 14), (3, 5, 4, 6), (5, 7, 6, 12), (2, 11, 13, 14)):
            assert np.array_equal(raster.read(y0, y1, x0, x1), pixels[y0:y1, x0:x1])
        assert read_from_file == []
        plain = CellRaster(stream.fileno(), GRID, 3, pixels.dtype)
        assert np.array_equal(plain.read(0, 11, 0, 14), pixels)


def test_no_more_is_kept_than_allowed_and_what_is_passed_makes_room(tmp_path: Path, read_from_file: list[int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 250, (11, 14, 1), np.uint8)
    with open(tmp_path / "raster", "w+b") as stream:
        # The largest core, 4 x 8, has a place of 32 bytes; there are three of them.
        raster = CellRaster(stream.fileno(), GRID, 1, pixels.dtype, 4 * 32 - 1)
        store(raster, pixels, list(range(6)))
        assert np.array_equal(raster.read(0, 4, 0, 14), pixels[:4])
        assert read_from_file == []
        assert np.array_equal(raster.read(0, 8, 0, 14), pixels[:8])
        assert read_from_file == [56, 76, 108]
        raster.passed(3)
        store(raster, pixels, [6])
        raster.passed(4)
        store(raster, pixels, [7, 8])
        read_from_file.clear()
        assert np.array_equal(raster.read(0, 11, 0, 14), pixels)
        assert read_from_file == [0, 20, 52, 56, 76, 108, 112]


def test_what_is_written_comes_back_in_one_piece(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 250, (11, 14, 3), np.uint8)
    with open(tmp_path / "raster", "w+b") as stream:
        for kept_bytes in (0, pixels.nbytes):
            raster = CellRaster(stream.fileno(), GRID, 3, pixels.dtype, kept_bytes)
            whole = raster.write(4, 5, pixels[4:8, 5:13])
            assert whole.flags.c_contiguous
            assert np.array_equal(whole, pixels[4:8, 5:13])


def test_rows_that_are_not_passed_stay(tmp_path: Path, read_from_file: list[int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 250, (11, 14, 1), np.uint8)
    with open(tmp_path / "raster", "w+b") as stream:
        raster = CellRaster(stream.fileno(), GRID, 1, pixels.dtype, 9 * 32)
        store(raster, pixels, list(range(9)))
        raster.passed(7)
        assert np.array_equal(raster.read(4, 11, 0, 14), pixels[4:])
        assert read_from_file == []


def test_a_part_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    with open(tmp_path / "raster", "w+b") as stream:
        raster = CellRaster(stream.fileno(), GRID, 1, np.dtype(np.uint8))
        store(raster, np.ones((11, 14, 1), np.uint8), [0])
        assert raster.read(1, 4, 2, 5).all()
        with pytest.raises(ImageError, match="it ends in row 2 of 11"):
            raster.read(2, 4, 4, 6)
