"""Pictures as files: the format from the extension, nothing under the final name before it is complete."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from tilefuse.images.jpeg_writer import write_jpeg
from tilefuse.images.metadata import exif_texts, exif_with_resolution
from tilefuse.images.modes import full_scale, pillow_image
from tilefuse.images.outputs import check_output, output_format, replacing
from tilefuse.images.picture import Picture
from tilefuse.images.png_writer import write_png
from tilefuse.images.rows import ALL_ROWS, Rows
from tilefuse.images.tiff_writer import write_tiff

Array = np.ndarray[Any, np.dtype[Any]]

JPEG_QUALITY = 95
_JPEG_EXIF_BYTES = 65533
_JPEG_DPI = 65535
_STRIP_PIXELS = 1 << 22


def write_image(
    path: str | os.PathLike[str], picture: Picture, *, overwrite: bool = False, rows: Rows = ALL_ROWS
) -> tuple[str, ...]:
    """Write a picture as PNG, JPEG, WebP or TIFF and return notes on what the format could not keep.

    TIFF keeps everything but EXIF's exposure and place, PNG everything but float (rounded to 16 bits); JPEG (quality
    95, 4:4:4) and WebP (lossless) are 8-bit, and JPEG shows transparent pictures on white. `rows` tells which pixels
    are there already; PNG, JPEG and TIFF are written as they come.

    Raises:
        UsageError: as `check_output` does.
    """
    check_output(path, overwrite=overwrite, size=(picture.width, picture.height))
    kind = output_format(path)
    picture, notes = _fitted(picture, kind, rows)
    with replacing(path, overwrite=overwrite) as stream:
        _ENCODERS[kind](stream, picture, rows)
    return notes


def _fitted(picture: Picture, kind: str, rows: Rows) -> tuple[Picture, tuple[str, ...]]:
    """Return the picture as `kind` can hold it, and notes on what was given up."""
    notes = []
    if kind == "JPEG" and picture.alpha is not None:
        rows.wait(picture.height)
        if (picture.alpha != picture.full_scale).any():
            notes.append("JPEG has no transparency: composited on white")
        picture = replace(picture, pixels=_on_white(picture.pixels, picture.alpha), alpha=None)
    dtype = picture.pixels.dtype
    target = {"JPEG": np.uint8, "WebP": np.uint8, "PNG": np.uint16 if dtype == np.float32 else dtype.type}.get(kind)
    if target is not None and dtype != target:
        rows.wait(picture.height)
        bits = 8 * np.dtype(target).itemsize
        notes.append(f"{kind} holds no {dtype}: rounded to {bits} bits{', clipped to 0..1' * (dtype.kind == 'f')}")
        alpha = picture.alpha
        picture = replace(
            picture, pixels=_rounded(picture.pixels, target), alpha=None if alpha is None else _rounded(alpha, target)
        )
    if kind == "JPEG" and picture.exif is not None and len(picture.exif) > _JPEG_EXIF_BYTES:
        notes.append(f"EXIF of {len(picture.exif)} bytes left out: JPEG holds {_JPEG_EXIF_BYTES}")
        picture = replace(picture, exif=None)
    if kind == "TIFF" and picture.exif is not None and not exif_texts(picture.exif)[1]:
        notes.append("of the EXIF, TIFF keeps the texts alone (camera, software, time, people)")
    return picture, tuple(notes)


def _on_white(pixels: Array, alpha: Array) -> Array:
    """Composite straight colour [H, W, C] on white, in the picture's own dtype."""
    white = float(full_scale(pixels.dtype))
    result = np.empty_like(pixels)
    for rows in _strips(pixels):
        share = alpha[rows, :, None].astype(np.float32) / white
        blended = pixels[rows] * share + white * (1 - share)
        result[rows] = blended if pixels.dtype.kind == "f" else np.rint(blended)
    return result


def _rounded(values: Array, target: type[np.unsignedinteger[Any]]) -> Array:
    """Return `values` in a narrower integer type, clipped and rounded to the nearest level."""
    result = np.empty(values.shape, target)
    for rows in _strips(values):
        share = np.clip(values[rows] / np.float32(full_scale(values.dtype)), 0, 1)
        result[rows] = np.rint(share * np.iinfo(target).max)
    return result


def _strips(values: Array) -> list[slice]:
    rows = max(1, _STRIP_PIXELS // values.shape[1])
    return [slice(top, top + rows) for top in range(0, values.shape[0], rows)]


def _write_png(stream: BinaryIO, picture: Picture, rows: Rows) -> None:
    write_png(stream, picture.pixels, picture.alpha, icc=picture.icc, dpi=picture.dpi, exif=picture.exif, rows=rows)


def _write_tiff(stream: BinaryIO, picture: Picture, rows: Rows) -> None:
    write_tiff(stream, picture.pixels, picture.alpha, icc=picture.icc, dpi=picture.dpi, exif=picture.exif, rows=rows)


def _write_jpeg(stream: BinaryIO, picture: Picture, rows: Rows) -> None:
    dpi = None if picture.dpi is None or max(picture.dpi) > _JPEG_DPI else picture.dpi
    # Colour at full resolution: halved it would undo what the network added to coloured edges.
    write_jpeg(stream, picture.pixels, quality=JPEG_QUALITY, icc=picture.icc, dpi=dpi, exif=picture.exif, rows=rows)


def _write_webp(stream: BinaryIO, picture: Picture, rows: Rows) -> None:
    rows.wait(picture.height)
    given: dict[str, Any] = {"icc_profile": picture.icc, "exif": picture.exif}
    if picture.dpi is not None:
        given["exif"] = exif_with_resolution(picture.exif, picture.dpi)
    # Lossless at its quickest: 15 MP/s and smaller than PNG; slower settings save a quarter at a quarter of the speed.
    # `exact` keeps the colour under transparent pixels, which later scaling reads.
    _pillow_image(picture).save(stream, "WEBP", lossless=True, method=0, quality=0, exact=True, **_present(given))


def _present(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _pillow_image(picture: Picture) -> Image.Image:
    pixels = picture.pixels
    if picture.alpha is not None:
        pixels = np.concatenate((pixels, picture.alpha[..., None]), axis=2)
    return pillow_image(pixels)


_ENCODERS = {"PNG": _write_png, "JPEG": _write_jpeg, "WebP": _write_webp, "TIFF": _write_tiff}
