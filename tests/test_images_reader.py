"""Reading: every layout of samples as it was meant, and a note on each conversion."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from tests.attacks.images import encoded, gray_tiff, picture, png, png_chunk
from tests.pictures import Array, noise, profile, save
from tilefuse.errors import ImageError
from tilefuse.images import picture_from_array, picture_to_array, read_image, write_image


def test_a_dark_16_bit_image_stays_16_bit(tmp_path: Path) -> None:
    for channels in (1, 3):
        array = noise((9, 7, channels), "uint16") % 200
        for name in ("dark.png", "dark.tif"):
            write_image(tmp_path / name, picture_from_array(array), overwrite=True)
            read = read_image(tmp_path / name).pixels
            assert read.dtype == np.uint16
            np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_tiffs_of_others(
    tmp_path: Path, byteorder: Any, compression: str | None, tile: tuple[int, int] | None, channels: int
) -> None:
    array = noise((40, 33, channels), "uint16")
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path,
        array if channels > 1 else array[..., 0],
        byteorder=byteorder,
        compression=compression,
        tile=tile,
        photometric="rgb" if channels > 1 else "minisblack",
        extrasamples=["unassalpha"] if channels == 4 else None,
        metadata=None,
    )
    np.testing.assert_array_equal(picture_to_array(read_image(path), like=array), array)


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float16", "float64"])
def test_planes_and_floats_that_pillow_cannot_read(tmp_path: Path, dtype: str) -> None:
    array = noise((12, 9, 3), dtype)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, np.moveaxis(array, 2, 0), photometric="rgb", planarconfig="separate", metadata=None)
    read = read_image(path).pixels
    assert read.dtype == ("uint16" if dtype == "uint16" else "float32")
    np.testing.assert_array_equal(read, array.astype(read.dtype))


@pytest.mark.parametrize(("compression", "predictor"), [("lzw", 1), ("zstd", 1), ("lzma", 1), ("zlib", 3)])
def test_compressions_that_need_imagecodecs_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, predictor: int
) -> None:
    pytest.importorskip("imagecodecs")
    array, path = noise((4, 5, 3), "float32"), tmp_path / "x.tif"
    tifffile.imwrite(path, array, photometric="rgb", compression=compression, predictor=predictor)
    np.testing.assert_array_equal(read_image(path).pixels, array)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ImageError, match=rf"predictor {predictor}, .* install it with: pip install imagecodecs"):
        read_image(path)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_png_with_every_row_filter(tmp_path: Path, channels: int, interlaced: bool) -> None:
    array = noise((11, 13, channels), "uint16")
    data = filtered_png(array, interlaced)
    np.testing.assert_array_equal(picture_to_array(read_image(save(tmp_path / "x.png", data)), like=array), array)


def test_premultiplied_16_bit_tiff_becomes_straight(tmp_path: Path) -> None:
    alpha = np.array([[0, 1, 257, 32768, 65535]], np.uint16)
    straight = noise((1, 5, 3), "uint16")
    stored = np.rint(straight * (alpha[..., None] / 65535)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "x.tif",
        np.dstack([stored, alpha]),
        photometric="rgb",
        extrasamples=["assocalpha"],
        metadata=None,
    )
    read = read_image(tmp_path / "x.tif")
    assert read.alpha is not None
    np.testing.assert_array_equal(read.alpha, alpha)
    exact = np.minimum(stored[0, 1:] * (65535 / alpha[0, 1:, None]), 65535)
    assert np.abs(read.pixels[0, 1:] - exact).max() <= 0.51
    assert (read.pixels[0, 0] == 0).all()


def test_white_is_zero_tiffs_are_not_negatives(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    eight = save(tmp_path / "8.tif", gray_tiff(8, 8, values.tobytes(), t262=(3, [0])))
    np.testing.assert_array_equal(read_image(eight).pixels[..., 0], 255 - values)
    deep = values.astype("<u2") * 1000
    sixteen = save(tmp_path / "16.tif", gray_tiff(8, 8, deep.tobytes(), t258=(3, [16]), t262=(3, [0])))
    np.testing.assert_array_equal(read_image(sixteen).pixels[..., 0], 65535 - deep)


def test_palettes_bits_and_cmyk_are_converted_and_said(tmp_path: Path) -> None:
    rgb = picture("RGB")
    cases = {
        "palette.png": (rgb.quantize(16), "RGB", "palette expanded to RGB"),
        "palette.gif": (rgb.quantize(16), "RGB", "palette expanded to RGB"),
        "bits.png": (picture("L").convert("1"), "L", "1-bit read as 8-bit gray"),
        "bits.tif": (picture("L").convert("1"), "L", "1-bit read as 8-bit gray"),
        "cmyk.jpg": (rgb.convert("CMYK"), "RGB", "CMYK converted to RGB without a profile"),
        "cmyk.tif": (rgb.convert("CMYK"), "RGB", "CMYK converted to RGB without a profile"),
    }
    for name, (image, mode, note) in cases.items():
        image.save(tmp_path / name)
        read = read_image(tmp_path / name)
        with Image.open(tmp_path / name) as again:
            expected = np.asarray(again.convert(mode)).reshape(read.pixels.shape)
        np.testing.assert_array_equal(read.pixels, expected, err_msg=name)
        assert read.notes == (note,)
        assert read.alpha is None


def test_cmyk_goes_through_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    real = ImageCms.buildTransform

    def recorded(given: Any, *rest: Any) -> Any:
        used.append(given.tobytes())
        # No CMYK profile can be generated here: an RGB one shows that the transform's result is what is kept.
        return real(given, rest[0], "RGB", "RGB")

    monkeypatch.setattr(ImageCms, "buildTransform", recorded)
    monkeypatch.setattr(ImageCms, "applyTransform", lambda part, transform: Image.new("RGB", part.size, (9, 8, 7)))
    path = tmp_path / "x.jpg"
    picture("RGB").convert("CMYK").save(path, icc_profile=profile())
    read = read_image(path)
    assert used == [profile()]
    assert (read.pixels == (9, 8, 7)).all()
    assert read.icc is None
    assert read.notes == ("CMYK converted to sRGB with its profile",)


def test_cmyk_with_a_profile_of_another_kind_is_still_read(tmp_path: Path) -> None:
    picture("RGB").convert("CMYK").save(tmp_path / "x.jpg", icc_profile=profile())
    assert read_image(tmp_path / "x.jpg").notes == ("CMYK converted to RGB without its profile, which can't be used",)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_transparency(tmp_path: Path, kind: str) -> None:
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.putdata([0, 1, 2, 0])
    path = save(tmp_path / "x", encoded(kind, image, transparency=1))
    read = read_image(path)
    assert read.alpha is not None
    np.testing.assert_array_equal(read.alpha[0], [255, 0, 255, 255])
    np.testing.assert_array_equal(read.pixels[0, [0, 2, 3]], [(255, 0, 0), (0, 0, 255), (255, 0, 0)])


@pytest.mark.parametrize(
    ("bits", "colour", "key", "samples", "alpha"),
    [
        (1, 0, [1], [0, 255], [255, 0]),
        (2, 0, [2], [0, 170], [255, 0]),
        (4, 0, [7], [0, 119], [255, 0]),
        (8, 0, [7], [0, 7], [255, 0]),
        (16, 0, [300], [0, 300], [65535, 0]),
        (8, 2, [1, 2, 3], [(0, 2, 3), (1, 2, 3)], [255, 0]),
        (16, 2, [1, 2, 300], [(1, 2, 44), (1, 2, 300)], [65535, 0]),
    ],
)
def test_png_transparency_keys(
    tmp_path: Path, bits: int, colour: int, key: list[int], samples: list[Any], alpha: list[int]
) -> None:
    stored = np.array(samples).reshape(2, -1)
    if bits < 8:
        stored = stored * (2**bits - 1) // 255
        row = bytes([int(stored[0, 0]) << (8 - bits) | int(stored[1, 0]) << (8 - 2 * bits)])
    else:
        row = stored.astype(">u2" if bits == 16 else np.uint8).tobytes()
    key_chunk = png_chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    data = png(2, 1, zlib.compress(b"\0" + row), bits=bits, colour=colour, before=key_chunk)
    read = read_image(save(tmp_path / "x.png", data))
    np.testing.assert_array_equal(read.pixels[0], np.array(samples).reshape(2, -1))
    assert read.alpha is not None
    np.testing.assert_array_equal(read.alpha[0], alpha)


def test_a_preview_page_is_left_out_and_said(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as writer:
        writer.write(noise((8, 8), "uint8"), metadata=None)
        writer.write(noise((4, 4), "uint8"), subfiletype=1, metadata=None)
    read = read_image(tmp_path / "x.tif")
    assert (read.height, read.width) == (8, 8)
    assert read.notes == ("the first of 2 pages is used, the others are previews or masks",)


def test_a_camera_s_second_picture_is_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    picture().save(path, "MPO", save_all=True, append_images=[picture(size=(5, 5))])
    read = read_image(path)
    assert (read.width, read.height) == picture().size
    assert read.notes == ("the first of 2 pictures in the file is used",)


def test_the_content_decides_not_the_extension(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "x.png", encoded("JPEG"))).width == picture().width


def test_float_gray_tiff_keeps_values_outside_0_to_1(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-0.5, 0, 1, 7.25]], np.float32)).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif").pixels[0, :, 0], [-0.5, 0, 1, 7.25])


def filtered_png(array: Array, interlaced: bool) -> bytes:
    """Encode 16-bit samples with the five row filters in turn, by the letter of the specification."""
    height, width, channels = array.shape
    step = 2 * channels
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    stream = b""
    for left, top, across, down in passes:
        part = array[top::down, left::across]
        above = [0] * (part.shape[1] * step)
        for number, row in enumerate(part):
            line = list(row.astype(">u2").tobytes())
            before = [0] * step + line[:-step]
            corner = [0] * step + above[:-step]
            kind = number % 5
            stream += bytes([kind])
            stream += bytes(
                (x - predicted(kind, a, b, c)) % 256 for x, a, b, c in zip(line, before, above, corner, strict=True)
            )
            above = line
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (png_chunk(b"IHDR", header), png_chunk(b"IDAT", zlib.compress(stream)), png_chunk(b"IEND", b""))
    )


def predicted(kind: int, left: int, above: int, corner: int) -> int:
    if kind == 4:
        estimate = left + above - corner
        return min((left, above, corner), key=lambda value: abs(estimate - value))
    return (0, left, above, (left + above) // 2)[kind]
