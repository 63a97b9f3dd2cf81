"""Pictures that are encoded while they are made: no pixel is read before it is there, or after it was given up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.pictures import noise
from tilefuse.images import Picture, jpeg_writer, png_writer, tiff_writer, write_image


class Growing:
    """Rows that appear when they are waited for, and are lost when they are passed."""

    def __init__(self, pixels: np.ndarray, final: np.ndarray, folder: Path) -> None:
        self.pixels, self.final = pixels, final
        self.folder, self.files = folder, sorted(folder.iterdir())
        self.there = self.gone = 0
        self.asked: list[int] = []

    def wait(self, rows: int) -> None:
        assert 0 < rows <= len(self.final)
        assert sorted(self.folder.iterdir()) == self.files, "a file waits for rows"
        self.asked.append(rows)
        self.pixels[self.there : rows] = self.final[self.there : rows]
        self.there = max(self.there, rows)

    def passed(self, rows: int) -> None:
        assert rows <= self.there
        self.pixels[self.gone : rows] = 0
        self.gone = max(self.gone, rows)


@pytest.mark.parametrize(
    ("name", "dtype", "asked", "kept"),
    [
        ("x.jpg", "uint8", [8, 16, 24, 32, 40, 43], 0),
        ("x.png", "uint8", [10, 20, 30, 40, 43], 1),
        ("x.png", "uint16", [5, 10, 15, 20, 25, 30, 35, 40, 43], 1),
        ("x.png", "float32", [43], 43),
        ("x.jpg", "uint16", [43], 43),
        ("x.webp", "uint8", [43], 43),
        ("x.tif", "uint8", [7, 14, 21, 28, 35, 42, 43], 0),
        ("x.tif", "uint16", [3, 6, 9], 0),
        ("x.tif", "float32", [43], 43),
    ],
)
def test_rows_are_read_when_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str, asked: list[int], kept: int
) -> None:
    monkeypatch.setattr(jpeg_writer, "_STRIP_PIXELS", 1)
    monkeypatch.setattr(png_writer, "_BLOCK_BYTES", 30 * 3 * 10)
    monkeypatch.setattr(tiff_writer, "_STRIP_BYTES", 30 * 3 * 7)
    final = noise((43, 30, 3), dtype)
    write_image(tmp_path / f"whole_{name}", Picture(final))
    pixels = np.zeros_like(final)
    rows = Growing(pixels, final, tmp_path)
    write_image(tmp_path / name, Picture(pixels), rows=rows)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"whole_{name}").read_bytes()
    assert rows.asked[: len(asked)] == asked
    if kept < 43:
        assert rows.gone == 43 - kept


def test_alpha_is_laid_on_white_once_all_of_it_is_there(tmp_path: Path) -> None:
    final, alpha = noise((43, 30, 3), "uint8"), noise((43, 30), "uint8")
    write_image(tmp_path / "whole.jpg", Picture(final, alpha))
    pixels = np.zeros_like(final)
    write_image(tmp_path / "x.jpg", Picture(pixels, alpha), rows=Growing(pixels, final, tmp_path))
    assert (tmp_path / "x.jpg").read_bytes() == (tmp_path / "whole.jpg").read_bytes()


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif"])
def test_rows_that_will_not_come_leave_nothing_behind(tmp_path: Path, name: str) -> None:
    class Failing(Growing):
        def wait(self, rows: int) -> None:
            if rows > 30:
                raise KeyError("no more")
            super().wait(rows)

    final = noise((43, 30, 3), "uint8")
    with pytest.raises(KeyError, match="no more"):
        write_image(tmp_path / name, Picture(np.zeros_like(final)), rows=Failing(np.zeros_like(final), final, tmp_path))
    assert list(tmp_path.iterdir()) == []
