"""Image files: what is written comes back, in every format, depth and channel count."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.pictures import noise
from tilefuse.images import picture_from_array, picture_to_array, png_writer, read_image, tiff_writer, write_image
from tilefuse.images.tiff_writer import write_tiff

SIZES = [(1, 1), (1, 17), (2, 3), (63, 17)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("dtype", "name"), [(d, f"x.{e}") for d, e in [("uint8", "png"), ("uint16", "png")]]
    + [(d, "x.tif") for d in ("uint8", "uint16", "float32")],
)  # fmt: skip
def test_png_and_tiff_keep_every_bit(
    tmp_path: Path, size: tuple[int, int], channels: int, dtype: str, name: str
) -> None:
    array = noise((*size, channels), dtype)
    assert write_image(tmp_path / name, picture_from_array(array)) == ()
    read = read_image(tmp_path / name)
    assert read.pixels.dtype == dtype
    np.testing.assert_array_equal(picture_to_array(read, like=array), array)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_webp_keeps_every_8_bit_sample(tmp_path: Path, channels: int) -> None:
    array = noise((63, 17, channels), "uint8")
    assert write_image(tmp_path / "x.webp", picture_from_array(array)) == ()
    read = read_image(tmp_path / "x.webp")
    colour = array[..., :1] if channels < 3 else array[..., :3]
    np.testing.assert_array_equal(read.pixels, np.broadcast_to(colour, (63, 17, 3)))
    if channels in (2, 4):
        assert read.alpha is not None
        np.testing.assert_array_equal(read.alpha, array[..., -1])


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_close_and_keeps_gray(tmp_path: Path, channels: int) -> None:
    ramp = np.linspace(0, 255, 64 * 64 * channels).reshape(64, 64, channels).astype(np.uint8)
    assert write_image(tmp_path / "x.jpeg", picture_from_array(ramp)) == ()
    read = read_image(tmp_path / "x.jpeg").pixels
    assert read.shape == ramp.shape
    assert np.abs(read.astype(int) - ramp).max() <= 3
    with Image.open(tmp_path / "x.jpeg") as image:
        assert channels == 1 or [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


def test_a_picture_of_many_blocks_is_joined_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = noise((200, 33, 3), "uint16")
    monkeypatch.setattr(png_writer, "_BLOCK_BYTES", 900)
    monkeypatch.setattr(tiff_writer, "_STRIP_BYTES", 900)
    monkeypatch.setattr("tilefuse.images.modes._STRIP_PIXELS", 100)
    for name in ("x.png", "x.tif"):
        write_image(tmp_path / name, picture_from_array(array))
        np.testing.assert_array_equal(read_image(tmp_path / name).pixels, array)
    write_image(tmp_path / "small.png", picture_from_array(array.astype(np.uint8)))
    np.testing.assert_array_equal(read_image(tmp_path / "small.png").pixels, array.astype(np.uint8))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("big", [False, True])
def test_tiff_tags(monkeypatch: pytest.MonkeyPatch, dtype: str, channels: int, big: bool) -> None:
    stream, array = io.BytesIO(), noise((31, 17, channels), dtype)
    source = picture_from_array(array)
    if big:
        monkeypatch.setattr(tiff_writer, "_CLASSIC_BYTES", array.nbytes - 1)
    write_tiff(stream, source.pixels, source.alpha, dpi=(300, 150.5), icc=b"profile")
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        (page,) = file.pages
        assert isinstance(page, tifffile.TiffPage)
        assert file.is_bigtiff == big
        np.testing.assert_array_equal(page.asarray().reshape(array.shape), array)
        across, down = (page.tags.valueof(tag) for tag in (282, 283))
        assert (across[0] / across[1], down[0] / down[1], page.tags.valueof(296)) == (300, 150.5, 2)
        assert page.tags.valueof(34675) == b"profile"
        assert [int(kind) for kind in page.extrasamples] == ([2] if channels in (2, 4) else [])
        assert page.dtype == dtype
        assert (page.compression, page.predictor) == (8, 1 if dtype == "float32" else 2)
        assert [page.tags.valueof(tag) for tag in (270, 305, 306)] == [None] * 3


def test_tiff_does_without_imagecodecs(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["imagecodecs"] = None
from pathlib import Path
import numpy as np
from tests.pictures import noise
from tilefuse.images import picture_from_array, picture_to_array, read_image, write_image
for dtype in ("uint8", "uint16", "float32"):
    for channels in (1, 2, 3, 4):
        array, path = noise((63, 17, channels), dtype), Path(sys.argv[1], f"{dtype}-{channels}.tif")
        write_image(path, picture_from_array(array))
        np.testing.assert_array_equal(picture_to_array(read_image(path), like=array), array)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=Path(__file__).parents[1])
    assert len(list(tmp_path.iterdir())) == 12
