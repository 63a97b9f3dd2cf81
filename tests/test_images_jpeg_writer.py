"""A JPEG that was encoded in strips is the one that was encoded at once."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pictures import noise
from tilefuse.images import jpeg_writer
from tilefuse.images.jpeg_writer import write_jpeg


def decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def written(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    write_jpeg(stream, pixels, quality=95, **options)
    return stream.getvalue()


def at_once(pixels: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, "JPEG", quality=95, subsampling=0)
    return decoded(stream.getvalue())


@pytest.mark.parametrize(
    ("height", "width", "depth"),
    [(1, 1, 3), (7, 9, 1), (8, 8, 3), (9, 17, 3), (80, 33, 3), (85, 64, 1), (161, 40, 3)],
    ids=lambda size: str(size),
)
@pytest.mark.parametrize("strip_px", [1, 700, 1 << 20])
def test_strips_decode_to_the_pixels_of_the_whole(
    height: int, width: int, depth: int, strip_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block on each row of its own, and more strips than there are restart markers."""
    monkeypatch.setattr(jpeg_writer, "_STRIP_PIXELS", strip_px)
    pixels = noise((height, width, depth), "uint8")
    np.testing.assert_array_equal(decoded(written(pixels)), at_once(pixels))


def test_a_row_of_the_widest_image_fits_the_restart_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """8188 blocks are a row of 65500 pixels; eight rows of them are more than 16 bits count."""
    monkeypatch.setattr(jpeg_writer, "_STRIP_PIXELS", 1 << 23)
    pixels = noise((136, 65500, 1), "uint8")
    np.testing.assert_array_equal(decoded(written(pixels)), at_once(pixels))


def test_restart_markers_count_to_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_writer, "_STRIP_PIXELS", 1)
    found = re.findall(rb"\xff([\xd0-\xd9])", written(noise((161, 40, 3), "uint8")))
    assert b"".join(found) == b"\xd8" + bytes(0xD0 + number % 8 for number in range(20)) + b"\xd9"


def test_metadata_is_written_once_even_where_it_looks_like_a_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg_writer, "_STRIP_PIXELS", 1)
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
    profile = b"\xff\xda\0\x04 \xff\xc0\0\x11 \xff\xd9 profile"
    pixels = noise((40, 30, 3), "uint8")
    data = written(pixels, icc=profile, dpi=(300.0, 150.0), exif=exif)
    assert (data.count(profile), data.count(exif), data.count(b"\xff\xd8\xff")) == (1, 1, 1)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.info["icc_profile"], image.info["dpi"]) == (profile, (300, 150))
        np.testing.assert_array_equal(np.asarray(image), at_once(pixels))
