"""The gallery's strips, for one model of each of two kinds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage")
sys.path.append(str(Path(__file__).parents[1] / "examples"))
import gallery
import gallery_rows

pytestmark = pytest.mark.thorough


def test_every_panel_fits_and_the_strips_differ() -> None:
    rows = [row for name in ("espcn-x2", "cgan-digits") for row in gallery_rows.rows_of(name)]
    assert [row.name for row in rows] == ["espcn-x2", "cgan-digits"]
    width, height = gallery_rows.PANEL_PX
    for row in rows:
        assert len(row.panels) == 3
        arrays = [np.asarray(image.convert("L").resize((32, 16))) for image in row.panels.values()]
        assert all(image.width <= width and image.height <= height for image in row.panels.values())
        assert all(not np.array_equal(a, b) for i, a in enumerate(arrays) for b in arrays[:i])
    page = gallery.sheet(rows)
    assert page.height > 2 * height
    assert page.width > 3 * width


def test_an_upscaled_detail_is_nearer_to_the_original_than_bicubic() -> None:
    (row,) = gallery_rows.rows_of("espcn-x2")
    bicubic, ours, original = (np.asarray(image, np.float64) for image in row.panels.values())
    assert np.square(ours - original).mean() < np.square(bicubic - original).mean()
