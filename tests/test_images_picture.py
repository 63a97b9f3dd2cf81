"""Pictures from and to NumPy arrays and Pillow images: the same kind comes back, everything else is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.attacks.images import picture
from tests.pictures import noise, profile
from tilefuse.errors import ImageError
from tilefuse.images import Picture, picture_from_array, picture_from_pil, picture_to_array, picture_to_pil

DTYPES = ["uint8", "uint16", "float16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4), (1, 1), (1, 1, 3)])
def test_arrays_come_back_the_same(dtype: str, shape: tuple[int, ...]) -> None:
    array = noise(shape, dtype)
    back = picture_to_array(picture_from_array(array), like=array)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_allclose(back, array, rtol=1e-7)


@pytest.mark.parametrize("dtype", [">u2", "<u2", ">f4", ">f8"])
def test_byte_order_is_understood(dtype: str) -> None:
    array = (noise((4, 3, 3), "uint16") if dtype[1] == "u" else noise((4, 3, 3), "float32")).astype(dtype)
    back = picture_to_array(picture_from_array(array), like=array)
    assert back.dtype.isnative
    np.testing.assert_allclose(back.astype(float), array.astype(float), rtol=1e-7)


def test_views_of_any_strides_are_read() -> None:
    array = noise((10, 12, 3), "uint8")
    for view in (array[::-1, ::2], array.transpose(1, 0, 2), array[..., ::-1], np.asfortranarray(array)):
        np.testing.assert_array_equal(picture_from_array(view).pixels, view)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 4), np.int64), "dtype int64; expected uint8"),
        (np.zeros((4, 4), bool), "dtype bool"),
        (np.zeros((4, 4), complex), "dtype complex128"),
        (np.zeros((4, 4), np.int8), "dtype int8"),
        (np.zeros((4, 4), np.uint32), "dtype uint32"),
        (np.array([["a"]]), "dtype <U1"),
        (np.zeros(4, np.uint8), "shape (4,)"),
        (np.zeros((3, 9, 9), np.uint8), "channels must come last"),
        (np.zeros((2, 9, 9, 3), np.uint8), "one by one"),
        (np.zeros((4, 4, 5), np.uint8), "C of 1 to 4"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros((4, 0), np.float32), "at least one pixel"),
        (np.zeros((4, 4, 0), np.float32), "at least one pixel"),
        (np.array([[0.5, np.nan]]), "1 of 2 pixels values are NaN or infinite"),
        (np.array([[[0.5, np.inf]]]), "1 of 1 alpha values are NaN or infinite"),
    ],
)
def test_other_arrays_are_refused_by_name(array: np.ndarray, said: str) -> None:
    with pytest.raises(ImageError) as raised:
        picture_from_array(array)
    assert said in str(raised.value)


def test_a_picture_checks_its_parts() -> None:
    pixels = np.zeros((4, 5, 3), np.uint8)
    for bad in (
        {"pixels": pixels[..., :2]},
        {"pixels": pixels.astype(np.int32)},
        {"pixels": pixels, "alpha": np.zeros((5, 4), np.uint8)},
        {"pixels": pixels, "alpha": np.zeros((4, 5), np.uint16)},
        {"pixels": pixels, "exif": b"Exif\0\0MM\0*"},
    ):
        with pytest.raises(ImageError, match="expected"):
            Picture(**bad)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_8_bit_pillow_images_come_back_the_same(mode: str) -> None:
    image = picture(mode)
    back = picture_to_pil(picture_from_pil(image))
    assert back.mode == mode
    assert back.tobytes() == image.tobytes()


def test_deep_gray_pillow_images_come_back_the_same() -> None:
    for array in (noise((5, 7), "uint16"), noise((5, 7), "float32")):
        back = picture_to_pil(picture_from_pil(Image.fromarray(array)))
        np.testing.assert_array_equal(np.asarray(back), array)
    big_endian = Image.frombytes("I;16B", (2, 1), b"\x01\x02\x03\x04")
    np.testing.assert_array_equal(picture_from_pil(big_endian).pixels[0, :, 0], [0x0102, 0x0304])


@pytest.mark.parametrize(
    ("mode", "result", "note"),
    [
        ("1", "L", "1-bit read as 8-bit gray"),
        ("P", "RGB", "palette expanded to RGB"),
        ("CMYK", "RGB", "CMYK converted to RGB without a profile"),
        ("YCbCr", "RGB", "YCbCr converted to RGB"),
        ("RGBX", "RGB", ""),
    ],
)
def test_other_pillow_modes_are_converted_as_pillow_does(mode: str, result: str, note: str) -> None:
    image = picture("RGB").convert(mode)
    read = picture_from_pil(image)
    assert picture_to_pil(read).tobytes() == image.convert(result).tobytes()
    assert read.notes == ((note,) if note else ())
    assert read.mode == mode


def test_premultiplied_pillow_images_become_straight() -> None:
    straight = Image.new("RGBA", (1, 1), (200, 100, 50, 128))
    read = picture_from_pil(straight.convert("RGBa"))
    assert np.abs(read.pixels[0, 0].astype(int) - (200, 100, 50)).max() <= 2


def test_alpha_in_a_palette_stays() -> None:
    image = picture("RGBA").quantize(16)
    assert image.mode == "P"
    assert "transparency" not in image.info
    back = picture_to_pil(picture_from_pil(image))
    assert back.mode == "RGBA"
    assert back.tobytes() == image.convert("RGBA").tobytes()


def test_pillow_images_without_pixels_are_refused(tmp_path: Path) -> None:
    for size in ((0, 5), (5, 0)):
        with pytest.raises(ImageError, match="at least one pixel"):
            picture_from_pil(Image.new("RGB", size))
    closed = picture("RGB")
    closed.close()
    with pytest.raises(ImageError, match="closed"):
        picture_from_pil(closed)
    path = tmp_path / "cut.png"
    Image.fromarray(noise((40, 40, 3), "uint8")).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with Image.open(path) as cut, pytest.raises(ImageError, match="truncated"):
        picture_from_pil(cut)


def test_subclasses_of_arrays_are_images() -> None:
    array = noise((5, 7), "uint8")
    np.testing.assert_array_equal(picture_from_array(array.view(np.matrix)).pixels[..., 0], array)
    np.testing.assert_array_equal(picture_from_array(np.ma.array(array)).pixels[..., 0], array)
    with pytest.raises(ImageError, match="filled"):
        picture_from_array(np.ma.array(array, mask=array > 100))


@pytest.mark.parametrize("mode", ["I", "LAB", "HSV"])
def test_pillow_modes_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=f"mode '{mode}'"):
        picture_from_pil(Image.new(mode, (3, 3)))


def test_pillow_metadata_stays_and_orientation_is_not_applied() -> None:
    image = picture("RGB")
    exif = Image.Exif()
    exif[274], exif[271] = 6, "Maker"
    image.info.update(icc_profile=profile(), dpi=(300, 300), exif=exif.tobytes())
    back = picture_to_pil(picture_from_pil(image))
    assert back.size == image.size
    assert back.info["icc_profile"] == profile()
    assert back.info["dpi"] == (300, 300)
    assert back.getexif()[274] == 6
    assert back.getexif()[271] == "Maker"


def test_pictures_pillow_cannot_hold_are_refused() -> None:
    for shape, dtype in (((4, 4, 3), "uint16"), ((4, 4, 2), "uint16"), ((4, 4, 3), "float32")):
        with pytest.raises(ImageError, match="ask for a NumPy array"):
            picture_to_pil(picture_from_array(noise(shape, dtype)))
