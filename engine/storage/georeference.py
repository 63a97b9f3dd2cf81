"""Metadata that changes with the scale: resolution, GeoTIFF's tie points and matrices, OME's pixel sizes.

Standard: OGC GeoTIFF 1.1, sections 7.1 and 8; OME-XML schema 2016-06.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

from tilefuse.images.metadata import exif_of_texts
from tilefuse.storage.base import Metadata, Tag

_PIXEL_SCALE, _TIE_POINT, _MATRIX, _KEYS, _DOUBLES, _ASCII = 33550, 33922, 34264, 34735, 34736, 34737
_GDAL = (42112, 42113)
_GEO = (_PIXEL_SCALE, _TIE_POINT, _MATRIX, _KEYS, _DOUBLES, _ASCII, *_GDAL)
_RASTER_TYPE_KEY, _PIXEL_IS_POINT = 1025, 2
_PER_INCH = {2: 1.0, 3: 2.54}


def read_metadata(page: Any, ome: str | None) -> Metadata:
    """Collect what travels from the tags of a tifffile page."""
    icc = page.tags.get(34675)
    resolution = [page.tags.get(tag) for tag in (282, 283)]
    unit = page.tags.get(296)
    dpi = None
    if all(tag is not None and tag.value[0] and tag.value[1] for tag in resolution):
        per_inch = _PER_INCH.get(int(unit.value) if unit is not None else 2)
        x, y = (tag.value[0] / tag.value[1] for tag in resolution)
        # 1 dpi is what writers put where nothing is known.
        dpi = (x * per_inch, y * per_inch) if per_inch and x > 1 and y > 1 else None
    geo = []
    for number in _GEO:
        tag = page.tags.get(number)
        if tag is not None:
            value = tag.value if isinstance(tag.value, tuple) else (tag.value,)
            geo.append((number, int(tag.dtype), value))
    exif = exif_of_texts({tag.code: tag.value for tag in page.tags})
    return Metadata(bytes(icc.value) if icc is not None else None, dpi, tuple(geo), ome, exif)


def scaled(metadata: Metadata, scale: Fraction) -> Metadata:
    """Return the metadata of an image with `scale` times as many pixels along an edge on the same ground."""
    factor = float(scale)
    dpi = metadata.dpi and (metadata.dpi[0] * factor, metadata.dpi[1] * factor)
    point = _is_point(metadata.geo)
    geo = tuple((number, kind, _scaled_tag(number, value, factor, point)) for number, kind, value in metadata.geo)
    return replace(metadata, dpi=dpi, geo=geo, ome=metadata.ome and _scaled_ome(metadata.ome, scale))


def _is_point(geo: tuple[Tag, ...]) -> bool:
    keys = next((value for number, _, value in geo if number == _KEYS), ())
    entries = [tuple(keys[start : start + 4]) for start in range(4, len(keys), 4)]
    return any(entry[0] == _RASTER_TYPE_KEY and entry[3] == _PIXEL_IS_POINT for entry in entries if len(entry) == 4)


def _scaled_tag(number: int, value: tuple[Any, ...], factor: float, point: bool) -> tuple[Any, ...]:
    # Tie points of PixelIsArea count from a pixel's corner, of PixelIsPoint from its centre.
    centre = 0.5 if point else 0.0
    if number == _PIXEL_SCALE and len(value) == 3:
        return (value[0] / factor, value[1] / factor, value[2])
    if number == _TIE_POINT:
        moved = list(value)
        for start in range(0, len(moved) - 5, 6):
            for axis in (start, start + 1):
                moved[axis] = (moved[axis] + centre) * factor - centre
        return tuple(moved)
    if number == _MATRIX and len(value) == 16:
        rows = list(value)
        shift = centre / factor - centre
        for row in range(3):
            column, line = rows[4 * row], rows[4 * row + 1]
            rows[4 * row : 4 * row + 2] = [column / factor, line / factor]
            rows[4 * row + 3] += (column + line) * shift
        return tuple(rows)
    return value


def _scaled_ome(xml: str, scale: Fraction) -> str:
    def pixels(found: re.Match[str]) -> str:
        sized = re.sub(r'(\bSize[XY]=")(\d+)(")', lambda m: f"{m[1]}{round(int(m[2]) * scale)}{m[3]}", found[0])
        return re.sub(
            r'(\bPhysicalSize[XY]=")([\d.eE+-]+)(")', lambda m: f"{m[1]}{float(m[2]) / float(scale)!r}{m[3]}", sized
        )

    return re.sub(r"<(?:\w+:)?Pixels\b[^>]*>", pixels, xml)
