"""Metadata: orientation once, profile byte for byte, resolution, EXIF that still holds."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.attacks.images import encoded, picture
from tests.pictures import Array, noise, profile, save
from tilefuse.images import Picture, picture_from_array, read_image, write_image
from tilefuse.images.png_writer import write_png

STORED = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
# What the eye must see, for a picture stored as STORED under each orientation (Exif 2.32, tag 0x0112).
SEEN: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "TIFF deflate", "PNG 16", "TIFF 16", "TIFF float"])
def test_orientation_is_applied_once(tmp_path: Path, orientation: int, kind: str) -> None:
    stored = np.kron(STORED, np.ones((16, 16), np.uint8))
    path = tmp_path / "in"
    save(path, oriented(stored, orientation, kind))
    read = read_image(path)
    scale = {"PNG 16": 257, "TIFF 16": 257, "TIFF float": 1 / 255}.get(kind, 1)
    seen = SEEN[orientation](stored)
    got = read.pixels[..., 0] / scale
    assert got.shape == seen.shape
    assert np.abs(got - seen).max() <= (6 if kind in ("JPEG", "WEBP") else 1e-3)
    assert read.dpi is not None or kind in ("WEBP", "TIFF float", "TIFF 16")
    if read.dpi is not None:
        assert read.dpi == pytest.approx((100, 200) if orientation < 5 else (200, 100), abs=0.1)
    for name in ("out.png", "out.jpg", "out.webp", "out.tif"):
        write_image(tmp_path / name, read)
        assert read_image(tmp_path / name).pixels.shape[:2] == seen.shape
        if (name, kind) != ("out.tif", "TIFF float"):
            with Image.open(tmp_path / name) as again:
                assert 274 not in again.getexif(), name


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.webp", "out.tif"])
def test_profile_resolution_and_exif_travel(tmp_path: Path, source: str, name: str) -> None:
    exif = Image.Exif()
    exif[271], exif[306], exif[274], exif[256] = "Maker", "2024:05:06 07:08:09", 1, 999
    exif[0x8769] = {33434: 0.005, 36867: "2024:05:06 07:08:09", 40962: 999}
    exif[0x8825] = {1: "N", 2: (51.0, 30.0, 0.0)}
    options: dict[str, Any] = {"dpi": (300, 150)}
    if source == "WEBP":
        exif[282], exif[283], exif[296] = 300.0, 150.0, 2
        options = {}
    save(tmp_path / "in", encoded(source, exif=exif.tobytes(), icc_profile=profile(), **options))
    read = read_image(tmp_path / "in")
    assert read.icc == profile()
    assert read.dpi == pytest.approx((300, 150), abs=0.02)
    notes = write_image(tmp_path / name, read)
    again = read_image(tmp_path / name)
    assert again.icc == profile()
    assert again.dpi == pytest.approx((300, 150), abs=0.05)
    with Image.open(tmp_path / name) as image:
        found = image.getexif()
        assert found[271] == "Maker"
        assert found[306] == "2024:05:06 07:08:09"
        shot, place = found.get_ifd(0x8769), found.get_ifd(0x8825)
    if name == "out.tif":
        assert notes == ("of the EXIF, TIFF keeps the texts alone (camera, software, time, people)",)
        assert not shot
        assert not place
        return
    assert notes == ()
    assert float(shot[33434]) == 0.005
    assert shot[36867] == "2024:05:06 07:08:09"
    assert 40962 not in shot
    assert tuple(map(float, place[2])) == (51, 30, 0)


def test_texts_of_exif_are_tags_of_a_tiff(tmp_path: Path) -> None:
    texts = {270: "caf\u00e9", 271: "Maker", 272: "Model", 305: "Software", 306: "2024:05:06 07:08:09", 315: "Artist"}
    exif = Image.Exif()
    exif.endian = "<"
    for tag, text in texts.items():
        exif[tag] = text.encode("latin-1")
    assert write_image(tmp_path / "x.tif", Picture(noise((4, 4, 3), "uint16"), exif=exif.tobytes())) == ()
    with Image.open(tmp_path / "x.tif") as image:
        found = image.getexif()
        assert {tag: found[tag] for tag in texts} == texts


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_description_of_the_array_s_shape_does_not_travel(tmp_path: Path, dtype: str) -> None:
    array = noise((6, 5, 3), dtype)
    tifffile.imwrite(tmp_path / "in.tif", array, photometric="rgb", software="Scanner")
    read = read_image(tmp_path / "in.tif")
    larger = replace(read, pixels=read.pixels.repeat(2, axis=0))
    write_image(tmp_path / "out.tif", larger)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif"), larger.pixels)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        tags = {tag.code: tag.value for tag in file.pages.first.tags}
    assert tags[305] == "Scanner"
    assert 270 not in tags


def test_an_orientation_that_is_none_is_left_alone(tmp_path: Path) -> None:
    for dtype in ("uint8", "float32"):
        array = noise((6, 5, 3), dtype)
        tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb", extratags=[(274, 3, 1, 99, True)])
        np.testing.assert_array_equal(read_image(tmp_path / "x.tif").pixels, array)


def test_damaged_exif_costs_a_note_not_the_picture(tmp_path: Path) -> None:
    for number, block in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*")):
        data = encoded("JPEG", exif=block)
        read = read_image(save(tmp_path / f"{number}.jpg", data))
        assert read.width == picture().width
        assert read.exif is None


def test_no_resolution_is_invented(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg", "x.webp", "x.tif"):
        write_image(tmp_path / name, picture_from_array(noise((4, 4, 3), "uint8")))
        read = read_image(tmp_path / name)
        assert (read.dpi, read.icc, read.exif) == (None, None, None), name
    # Pillow reports 72 dpi for a JPEG whose EXIF has no resolution.
    exif = Image.Exif()
    exif[271] = "Maker"
    read = read_image(save(tmp_path / "exif.jpg", encoded("JPEG", exif=exif)))
    assert (read.dpi, read.exif is None) == (None, False)


def test_exif_too_long_for_jpeg_is_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.endian, exif[270] = "<", "long " * 20_000
    source = Picture(noise((4, 4, 3), "uint8"), exif=exif.tobytes())
    (note,) = write_image(tmp_path / "x.jpg", source)
    assert note.startswith("EXIF of 100")


def oriented(stored: Array, orientation: int, kind: str) -> bytes:
    """Return a file of gray `stored` with an EXIF orientation and, where the writer can, 100 x 200 dpi."""
    exif = Image.Exif()
    exif[274] = orientation
    if kind in ("TIFF 16", "TIFF float"):
        deep = stored.astype(np.uint16) * 257 if kind == "TIFF 16" else stored.astype(np.float32) / 255
        stream = io.BytesIO()
        tag = (274, 3, 1, orientation, True)
        tifffile.imwrite(stream, np.dstack([deep] * 3), photometric="rgb", extratags=[tag], metadata=None)
        return stream.getvalue()
    if kind == "PNG 16":
        stream = io.BytesIO()
        write_png(stream, np.dstack([stored.astype(np.uint16) * 257] * 3), dpi=(100, 200), exif=exif.tobytes())
        return stream.getvalue()
    options: dict[str, Any] = {"dpi": (100, 200), "exif": exif}
    if kind == "TIFF deflate":
        options["compression"] = "tiff_adobe_deflate"
    if kind == "WEBP":
        options["lossless"] = True
    return encoded(kind.split()[0], Image.fromarray(np.dstack([stored] * 3)), **options)
