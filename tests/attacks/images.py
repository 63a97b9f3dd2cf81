"""Image files that must be refused: truncated, empty, mislabelled, oversized, animated, inconsistent."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Attack = tuple[str, Path, str]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def picture(mode: str = "RGB", size: tuple[int, int] = (11, 7)) -> Image.Image:
    """Return noise over a gradient, so that every format needs most of its bytes."""
    rng = np.random.default_rng(7)
    channels = len(Image.new(mode, (1, 1)).getbands())
    ramp = np.linspace(0, 200, size[0], dtype=np.uint8)[None, :, None]
    values = ramp + rng.integers(0, 56, (size[1], size[0], channels), dtype=np.uint8)
    return Image.frombytes(mode, size, np.ascontiguousarray(values).tobytes())


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """Return an image as bytes of a Pillow format."""
    stream = io.BytesIO()
    (picture() if image is None else image).save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *, bits: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    """Return a PNG of the given header whose pixel stream is `data`, already deflated."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return PNG_MAGIC + png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[int, list[int]]], data: bytes = b"", next_directory: int = 0) -> bytes:
    """Return a little-endian TIFF whose pixel data starts at offset 8; a tag is (type, values), 3 short and 4 long."""
    body, entries = data, b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            offset = struct.pack("<I", 8 + len(body))
            body += packed
        else:
            offset = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, len(values)) + offset
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_directory)
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + directory


def gray_tiff(width: int, height: int, data: bytes, **changed: tuple[int, list[int]]) -> bytes:
    """Return an uncompressed 8-bit gray TIFF of one strip; `changed` replaces tags, named like t258."""
    tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8]),
        259: (3, [1]),
        262: (3, [1]),
        273: (4, [8]),
        277: (3, [1]),
        278: (4, [height]),
        279: (4, [len(data)]),
    }
    return tiff(tags | {int(name[1:]): value for name, value in changed.items()}, data)


def float_rgb_tiff(width: int, height: int, strip: bytes) -> bytes:
    """Return a Deflate-compressed float32 RGB TIFF of one strip."""
    return gray_tiff(
        width, height, strip, t258=(3, [32, 32, 32]), t259=(3, [8]), t262=(3, [2]), t277=(3, [3]), t339=(3, [3, 3, 3])
    )


def _rows(length: int, count: int) -> list[bytes]:
    rng = np.random.default_rng(11)
    return [rng.bytes(length) for _ in range(count)]


def truncatable() -> dict[str, bytes]:
    """Return whole files, by name with extension, that a test may cut anywhere."""
    return {
        "gray.png": encoded("PNG", picture("L")),
        "rgba.png": encoded("PNG", picture("RGBA")),
        "rgb16.png": png(11, 7, zlib.compress(b"".join(b"\0" + row for row in _rows(66, 7))), bits=16),
        "baseline.jpg": encoded("JPEG"),
        "progressive.jpg": encoded("JPEG", progressive=True),
        "lossy.webp": encoded("WEBP", quality=80),
        "lossless.webp": encoded("WEBP", picture("RGBA"), lossless=True),
        "raw.tif": encoded("TIFF"),
        "deflate.tif": encoded("TIFF", compression="tiff_adobe_deflate"),
        "lzw.tif": encoded("TIFF", compression="tiff_lzw"),
        "still.gif": encoded("GIF", picture("L")),
        "plain.bmp": encoded("BMP"),
    }


def _frames(kind: str, **options: Any) -> bytes:
    return encoded(kind, save_all=True, append_images=[picture().rotate(90 * turn) for turn in (1, 2)], **options)


def _bombs() -> dict[str, tuple[bytes, str]]:
    limit = "past the limit"
    jpeg = bytearray(encoded("JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 65535, 65535)
    bmp = bytearray(encoded("BMP"))
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    gif = bytearray(encoded("GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    zeros = zlib.compress(bytes(64_000_000), 9)
    return {
        "bomb.png": (png(100_000, 100_000, zlib.compress(bytes(1000))), limit),
        "largest.png": (png(2**31 - 1, 2**31 - 1, zlib.compress(bytes(1000))), limit),
        "hollow.png": (png(20_000, 20_000, zlib.compress(bytes(1000))), "damaged or truncated"),
        "text.png": (
            png(1, 1, zlib.compress(bytes(4)), before=png_chunk(b"zTXt", b"a\0\0" + zeros)),
            "can't be decoded",
        ),
        "bomb.jpg": (bytes(jpeg), limit),
        "bomb.bmp": (bytes(bmp), limit),
        "bomb.gif": (bytes(gif), limit),
        "bomb.tif": (gray_tiff(100_000, 100_000, bytes(100)), limit),
        "float_bomb.tif": (float_rgb_tiff(100_000, 100_000, zlib.compress(bytes(120))), limit),
        "inflating.tif": (float_rgb_tiff(8, 8, zeros), "inflates past"),
    }


def _inconsistent() -> dict[str, tuple[bytes, str]]:
    whole = encoded("PNG")
    middle = whole.index(b"IDAT") + 40
    flipped = whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
    nan = np.full((8, 8, 3), np.nan, "<f4").tobytes()
    bmp = bytearray(encoded("BMP"))
    bmp[18:22] = struct.pack("<i", 0)
    return {
        "no_columns.png": (png(0, 5, zlib.compress(b"")), "no pixels"),
        "no_rows.png": (png(5, 0, zlib.compress(b"")), "no pixels"),
        "no_columns.tif": (gray_tiff(0, 5, b""), "no pixels"),
        "no_columns.bmp": (bytes(bmp), "no pixels"),
        "short_rows.png": (png(8, 8, zlib.compress(bytes(25 * 4))), "damaged or truncated"),
        "flipped_byte.png": (flipped, "damaged or truncated"),
        "no_data.png": (PNG_MAGIC + whole[8:33] + png_chunk(b"IEND", b""), "damaged"),
        "few_strips.tif": (
            gray_tiff(8, 8, bytes(64), t278=(4, [2]), t273=(4, [8, 24]), t279=(4, [16, 16])),
            "strips cover",
        ),
        "no_rows_a_strip.tif": (gray_tiff(8, 8, bytes(64), t278=(4, [0])), "strips cover"),
        "strips_outside.tif": (gray_tiff(8, 8, bytes(64), t273=(4, [2**31])), "damaged or truncated"),
        "directory_outside.tif": (struct.pack("<2sHI", b"II", 42, 2**31), "damaged"),
        "signed.tif": (gray_tiff(8, 8, bytes(64), t339=(3, [2])), "signed"),
        "twelve_bits.tif": (gray_tiff(8, 8, bytes(96), t258=(3, [12])), "12-bit"),
        "integers.tif": (gray_tiff(8, 8, bytes(256), t258=(3, [32])), "mode 'I'"),
        "cmyk16.tif": (
            gray_tiff(2, 2, bytes(32), t258=(3, [16] * 4), t262=(3, [5]), t277=(3, [4])),
            "16-bit CMYK",
        ),
        "nan.tif": (float_rgb_tiff(8, 8, zlib.compress(nan)), "NaN or infinite"),
    }


def _animated() -> dict[str, tuple[bytes, str]]:
    return {
        "animated.gif": (_frames("GIF"), "animated (3 frames)"),
        "animated.png": (_frames("PNG"), "animated (3 frames)"),
        "animated.webp": (_frames("WEBP"), "animated (3 frames)"),
        "pages.tif": (_frames("TIFF"), "3 full-size pages"),
    }


def _mislabelled() -> dict[str, tuple[bytes, str]]:
    return {
        "empty.png": (b"", "empty"),
        "text_named.png": ("Ceci n'est pas une image — ni un PNG.\n".encode(), "text"),
        "zeros.png": (bytes(5000), "unknown format"),
        "heic.jpg": (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
        "audio.webp": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "unknown format"),
        "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "text"),
    }


def build(folder: Path) -> list[Attack]:
    """Write every file into `folder` and return (name, path, what the error must say)."""
    files = _mislabelled() | _animated() | _inconsistent() | _bombs()
    for name, data in truncatable().items():
        for share in (0.3, 0.8):
            files[f"cut_{share}_{name}"] = (data[: int(len(data) * share)], "damaged")
    attacks = []
    for name, (data, expected) in files.items():
        path = folder / name
        path.write_bytes(data)
        attacks.append((name, path, expected))
    return attacks + _places(folder)


def _places(folder: Path) -> list[Attack]:
    """Return paths that are no readable regular file."""
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "fifo.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    attacks = [
        ("missing.png", folder / "missing.png", "no such file"),
        ("folder.png", folder / "folder.png", "a directory"),
        ("fifo.png", folder / "fifo.png", "a FIFO"),
        ("device.png", folder / "device.png", "a device"),
        ("loop.png", folder / "loop.png", "can't be opened"),
    ]
    locked = folder / "locked.png"
    locked.write_bytes(encoded("PNG"))
    locked.chmod(0)
    # The superuser reads it all the same.
    return attacks if os.access(locked, os.R_OK) else [*attacks, ("locked.png", locked, "Permission denied")]
