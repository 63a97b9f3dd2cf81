"""Writing: nothing given up in silence, nothing left behind by a failure."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pictures import noise
from tilefuse.errors import UsageError
from tilefuse.images import Picture, picture_from_array, png_writer, read_image, write_image, writer
from tilefuse.images.png_writer import write_png


def test_jpeg_composites_alpha_on_white(tmp_path: Path) -> None:
    for dtype, full in (("uint8", 255), ("uint16", 65535), ("float32", 1)):
        pixels = np.zeros((16, 48, 3), dtype)
        alpha = np.repeat(np.array([0, full / 2, full]).astype(dtype), 16)[None].repeat(16, 0)
        notes = write_image(tmp_path / "x.jpg", Picture(pixels, alpha), overwrite=True)
        assert "JPEG has no transparency: composited on white" in notes
        read = read_image(tmp_path / "x.jpg").pixels.astype(int)
        for column, level in ((8, 255), (24, 128), (40, 0)):
            assert np.abs(read[8, column] - level).max() <= 3, dtype


def test_opaque_alpha_is_dropped_from_jpeg_without_a_note(tmp_path: Path) -> None:
    assert write_image(tmp_path / "x.jpg", picture_from_array(np.full((4, 4, 4), 255, np.uint8))) == ()


def test_narrower_formats_round_to_the_nearest_level_and_say_so(tmp_path: Path) -> None:
    deep = picture_from_array(np.array([[[0, 128, 65535]], [[129, 257, 40000]]], np.uint16))
    assert write_image(tmp_path / "x.webp", deep) == ("WebP holds no uint16: rounded to 8 bits",)
    np.testing.assert_array_equal(read_image(tmp_path / "x.webp").pixels, [[[0, 0, 255]], [[1, 1, 156]]])
    real = picture_from_array(np.array([[-1, 0, 0.5, 1, 2]], np.float32))
    assert write_image(tmp_path / "x.png", real) == ("PNG holds no float32: rounded to 16 bits, clipped to 0..1",)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").pixels[0, :, 0], [0, 0, 32768, 65535, 65535])


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tif"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("x")])
def test_a_failure_half_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    (tmp_path / name).write_bytes(b"precious")
    kind = writer.output_format(name)
    real = writer._ENCODERS[kind]

    def failing(*given: Any) -> None:
        real(*given)
        raise error

    monkeypatch.setitem(writer._ENCODERS, kind, failing)
    # Only the system's refusals are the user's to mend.
    with pytest.raises(UsageError if isinstance(error, OSError) else type(error)):
        write_image(tmp_path / name, picture_from_array(noise((8, 8, 3), "uint8")), overwrite=True)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"precious"


def test_png_writes_chunks_every_reader_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_writer, "_BLOCK_BYTES", 30 * 6 * 15)
    stream = io.BytesIO()
    write_png(stream, noise((40, 30, 3), "uint16"), icc=b"abc", dpi=(300, 300), exif=b"Exif\0\0II*\0")
    data = stream.getvalue()
    place, kinds = 8, []
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 4 : place + 8 + length]
        assert zlib.crc32(body) == struct.unpack_from(">I", data, place + 8 + length)[0]
        kinds.append((kind, body[4:]))
        place += 12 + length
    assert [kind for kind, _ in kinds] == [b"IHDR", b"iCCP", b"pHYs", b"eXIf", *[b"IDAT"] * 4, b"IEND"]
    assert kinds[3][1] == b"II*\0"
    # zlib itself checks the joined Adler-32.
    assert len(zlib.decompress(b"".join(body for kind, body in kinds if kind == b"IDAT"))) == 40 * (1 + 30 * 6)
