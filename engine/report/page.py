"""Comparison → HTML: pictures as data URIs, the page's own style and script inside, nothing fetched."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilefuse.bench import DEFAULT, Row
from tilefuse.compare import Comparison, Entry, Seam, psnr_text
from tilefuse.errors import UsageError
from tilefuse.machine import format_bytes

_FOLDER = Path(__file__).parent
_BEFORE = "bicubic"


def render(comparison: Comparison) -> str:
    """Write the page.

    Raises:
        UsageError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise UsageError("a report needs jinja2, which is not installed; run: pip install jinja2") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    pictures, images = _pictures(comparison)
    return environment.get_template("page.html").render(
        comparison=comparison,
        chosen=comparison.chosen.row,
        pictures=pictures,
        images=images,
        first=_BEFORE,
        rows=[_table_row(entry) for entry in comparison.entries],
        refused=[entry.row for entry in comparison.entries if entry.row.refused is not None],
        seams=[(entry.row.name, _seam_text(entry.seam)) for entry in comparison.entries if entry.seam is not None],
    )


def _pictures(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """List the pictures by name and what they show; equal ones share their data, which is stored once."""
    found = [(_BEFORE, "input, bicubic", comparison.before)]
    for entry in comparison.entries:
        if entry.shown is not None:
            found.append((entry.row.name, _label(entry.row), entry.shown))
    places: dict[bytes, int] = {}
    images: list[str] = []
    pictures = []
    for name, label, pixels in found:
        key = pixels.tobytes()
        if key not in places:
            places[key] = len(images)
            images.append(_data_uri(pixels))
        pictures.append({"name": name, "label": label, "image": places[key]})
    return pictures, images


def _label(row: Row) -> str:
    return f"chosen: {row.backend} {row.precision}" if row.name == DEFAULT else row.name


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    """Encode losslessly: the differences that the page computes are those of the results."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(encoded, "PNG")
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()


def _table_row(entry: Entry) -> dict[str, str]:
    row = entry.row
    if row.timing is None:
        return {"name": row.name, "refused": row.refused or ""}
    return {
        "name": _label(row),
        "refused": "",
        "ms": f"{1000 * row.timing.median_s:.1f}",
        "spread": f"{1000 * row.timing.p20_s:.1f} to {1000 * row.timing.p80_s:.1f}",
        "mps": f"{row.output_mps or 0:.2f}",
        "compile": f"{row.compile_s or 0:.2f}",
        "memory": "-" if row.peak_bytes is None else format_bytes(row.peak_bytes),
        "psnr": psnr_text(row),
        "ssim": "-" if entry.ssim is None else f"{entry.ssim:.4f}",
        "levels": f"{row.max_levels or 0:.0f}",
    }


def _seam_text(seam: Seam) -> str:
    if seam.refused is not None or seam.max_difference is None:
        return seam.refused or "not measured"
    windows = f"{seam.windows} windows of tile {seam.tile}"
    if seam.max_difference == 0:
        return f"{windows}: equal in every bit"
    rounded = f"{seam.rounded:,} samples" if seam.rounded else "none"
    return f"{windows}: largest difference {seam.max_difference:.1e}; of 8-bit samples, {rounded} round differently"
