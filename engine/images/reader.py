"""Image files as pictures: one still image, all its bits, upright, with its metadata, or an ImageError."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from tilefuse.errors import CapacityError, ImageError
from tilefuse.images.deep_color import Opener, is_deep, is_deep_planar, planar, raw_mode, read_deep
from tilefuse.images.metadata import exif_bytes, orientation_of, resolution_dpi, upright
from tilefuse.images.modes import Decoded, decode_mode, inverted
from tilefuse.images.outputs import shown
from tilefuse.images.picture import Picture
from tilefuse.images.pillow_limit import allowing
from tilefuse.images.png_checks import check_all_rows
from tilefuse.images.tiff_reader import read_tiff

MAX_PIXELS = 500_000_000

# Opened by these classes, not by Image.open: no other plugin sees the file (some run programs), and Pillow's
# process-wide size limit stays as the host program set it.
_OPENERS: dict[str, tuple[tuple[bytes, ...], Opener]] = {
    "PNG": ((b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    "JPEG": ((b"\xff\xd8\xff",), JpegImagePlugin.jpeg_factory),
    "WebP": ((b"RIFF",), WebPImagePlugin.WebPImageFile),
    "TIFF": ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    "GIF": ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    "BMP": ((b"BM",), BmpImagePlugin.BmpImageFile),
}
# Pillow scales gray of 2 and 4 bits to 0..255 but leaves the transparency key as stored.
_GRAY_STEPS = {"L;2": 85, "L;4": 17}
_REDUCED_OR_MASK = 5


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF, GIF or BMP file of one still image.

    Keeps 8-bit, 16-bit and float samples as they are; expands palettes and 1-bit, converts CMYK (through its profile)
    and says so in `notes`; applies the EXIF orientation. Raises ImageError for files that are missing, not regular,
    damaged, truncated, animated, of several pages, or declare more than `max_pixels`; CapacityError when memory ends.
    """
    try:
        with _opened(path) as stream:
            return _read(stream, max_pixels)
    except ImageError as error:
        raise ImageError(f"{shown(path)}: {error}") from error
    except MemoryError as error:
        raise CapacityError(f"{shown(path)}: the decoded image does not fit into memory") from error
    except Exception as error:
        # Decoders raise whatever damaged bytes lead them to; to the user they all mean one thing.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(
            f"{shown(path)}: can't be decoded ({reason}); the file is damaged or truncated, get a whole copy"
        ) from error


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a regular file; anything else is refused before it is opened, because opening a FIFO or device can block."""
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            names = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
            raise ImageError(f"it is {names.get(stat.S_IFMT(kind), 'a device')}, not a file; give an image file")
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise ImageError("no such file; check the path") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"can't be opened ({reason}); check the path and its permissions") from error
    with open(descriptor, "rb") as stream:
        yield stream


def _read(stream: IO[bytes], max_pixels: int) -> Picture:
    kind = _kind(stream.read(4096))
    opener = _OPENERS[kind][1]

    def check_size(size: tuple[int, int]) -> None:
        if size[0] * size[1] > max_pixels:
            raise ImageError(
                f"it declares {size[0]} x {size[1]} px, past the limit of {max_pixels} pixels; "
                "if you trust the file, raise max_pixels"
            )

    stream.seek(0)
    try:
        with allowing(max_pixels):
            image = opener(stream)
    except SyntaxError as error:
        if kind == "TIFF" and "mode" in str(error):
            return _read_with_tifffile(stream, check_size)
        raise ImageError(f"its {kind} header is damaged, cut short, or declares an image of no pixels") from error
    check_size(image.size)
    notes = _still(image, kind)
    if kind == "TIFF":
        _check_tiff(image)
        if is_deep_planar(image):
            return _read_with_tifffile(stream, check_size)
    stored_orientation = image.tag_v2.get(274, 1) if isinstance(image, TiffImagePlugin.TiffImageFile) else 1
    if raw_mode(image) in _GRAY_STEPS and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= _GRAY_STEPS[raw_mode(image)]
    mode = raw_mode(image) if is_deep(image) else image.mode
    with allowing(image.size[0] * image.size[1]):
        if is_deep(image):
            pixels, alpha = read_deep(image, stream, opener)
            decoded = Decoded(pixels, alpha, image.info.get("icc_profile") or None)
        else:
            image.load()
            decoded = decode_mode(image)
        # Rows missing from the stream are left zero, so only a picture whose last row is zero needs the costly check.
        if kind == "PNG" and (image.info.get("interlace") or not _last_row(image).any()):
            check_all_rows(stream)
    return _picture(image, decoded, notes, mode, stored_orientation)


def _kind(prefix: bytes) -> str:
    """Return the format the first bytes mean, or say what they are instead."""
    for kind, (magics, _) in _OPENERS.items():
        if prefix.startswith(magics) and (kind != "WebP" or prefix[8:12] == b"WEBP"):
            return kind
    found = "of an unknown format"
    if not prefix:
        found = "empty"
    elif prefix.replace(b"\r", b"").replace(b"\n", b"").replace(b"\t", b"").decode("utf-8", "replace").isprintable():
        found = "text"
    elif prefix[4:8] == b"ftyp":
        found = "HEIC, AVIF or a video"
    raise ImageError(f"the file is {found}; expected {', '.join(_OPENERS)}")


def _still(image: ImageFile.ImageFile, kind: str) -> tuple[str, ...]:
    """Refuse animations and documents of several pages; return a note on lesser pictures left out."""
    count = int(getattr(image, "n_frames", 1))
    if count == 1:
        return ()
    # Cameras append previews and gain maps to their JPEG files (MPO); the first picture is the photograph.
    if kind == "JPEG":
        return (f"the first of {count} pictures in the file is used",)
    if kind != "TIFF":
        raise ImageError(f"it is animated ({count} frames); save the frame you want as a still image")
    full = 1
    for page in range(1, count):
        image.seek(page)
        full += not int(getattr(image, "tag_v2", {}).get(254, 0)) & _REDUCED_OR_MASK
    if full > 1:
        raise ImageError(f"it holds {full} full-size pages; save the one you want as a file of its own")
    image.seek(0)
    return (f"the first of {count} pages is used, the others are previews or masks",)


def _check_tiff(image: ImageFile.ImageFile) -> None:
    """Refuse TIFF samples Pillow would misread, and pixels that no strip or tile of the file covers."""
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(258, (1,)))
    formats = set(tags.get(339, (1,)))
    if formats == {2} or bits == 12:
        raise ImageError(f"it holds {bits}-bit {'signed ' if formats == {2} else ''}samples; convert it to 8 or 16 bit")
    # libtiff decodes, and checks, all strips of all planes as one piece.
    layers = len(image.getbands()) if planar(image) and image.tile[0].codec_name != "libtiff" else 1
    covered = 0
    for tile in image.tile:
        left, top, right, bottom = tile.extents or (0, 0, *image.size)
        covered += (right - left) * (bottom - top)
    area = image.size[0] * image.size[1]
    if covered < area * layers:
        raise ImageError(f"its strips cover {covered // layers} of {area} pixels; the file is damaged")


def _last_row(image: Image.Image) -> np.ndarray[Any, np.dtype[Any]]:
    width, height = image.size
    return np.asarray(image.crop((0, height - 1, width, height)))


def _picture(
    image: ImageFile.ImageFile, decoded: Decoded, notes: tuple[str, ...], mode: str, stored_orientation: int
) -> Picture:
    tags = getattr(image, "tag_v2", {})
    pixels, alpha = decoded.pixels, decoded.alpha
    if tags.get(262) == 0 and mode in ("I;16", "I;16B", "F"):
        pixels = inverted(pixels)
    # Pillow turns TIFF upright while loading and then forgets the orientation; other formats it leaves as stored.
    orientation = orientation_of(image)
    dpi = resolution_dpi(image)
    if dpi is not None and max(orientation, stored_orientation) >= 5:
        dpi = dpi[::-1]
    exif, exif_note = exif_bytes(image)
    return Picture(
        upright(pixels, orientation),
        None if alpha is None else upright(alpha, orientation),
        icc=decoded.icc,
        dpi=dpi,
        exif=exif,
        notes=(*notes, *decoded.notes, *((exif_note,) if exif_note else ())),
        mode=mode,
    )


def _read_with_tifffile(stream: IO[bytes], check_size: Callable[[tuple[int, int]], None]) -> Picture:
    page = read_tiff(stream, check_size)
    dpi = page.dpi[::-1] if page.dpi is not None and page.orientation >= 5 else page.dpi
    note = (f"the first of {page.skipped + 1} pages is used, the others are previews or masks",) if page.skipped else ()
    return Picture(
        upright(page.pixels, page.orientation),
        None if page.alpha is None else upright(page.alpha, page.orientation),
        icc=page.icc,
        dpi=dpi,
        exif=page.exif,
        notes=note,
        mode=f"TIFF {page.pixels.dtype}",
    )
