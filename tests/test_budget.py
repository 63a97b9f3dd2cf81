"""The memory budget holds for the whole process, whatever the image's size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tilefuse
from tests.attacks.rasters import write_sparse
from tilefuse.errors import CapacityError, UsageError
from tilefuse.storage.vips_encode import check_webp_memory

pytestmark = pytest.mark.thorough

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("pyvips")
pytest.importorskip("zarr")

ROOT = Path(__file__).parents[1]
MIB = 1 << 20


def measured(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.peaking", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads(done.stdout)


def photograph(height: int, width: int) -> np.ndarray:
    """Return something smooth with noise, which neither compresses to nothing nor not at all."""
    small = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_peak_within_budget(tmp_path: Path, suffix: str) -> None:
    """Held in memory, image, result (101 MiB) and their copies would pass the budget."""
    Image.fromarray(photograph(1300, 1700)).save(tmp_path / "in.png", compress_level=1)
    found = measured("job", tmp_path / "in.png", tmp_path / f"out{suffix}", "256MiB", "deflate")
    assert found["windows"] > 1
    assert found["growth_bytes"] <= 256 * MIB
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.size == (6800, 5200)


def test_ten_gigapixels_are_planned_at_once_and_the_last_windows_cost_what_the_first_do(tmp_path: Path) -> None:
    write_sparse(tmp_path / "huge.tif", 100_000, 100_000)
    found = measured("gigapixels", tmp_path / "huge.tif", tmp_path, "256MiB", 100)
    assert found["planned_seconds"] < 1
    first, last = found["growth_bytes"]
    assert max(first, last) <= 256 * MIB
    assert last <= first + 8 * MIB


def test_formats_that_can_not_hold_the_result_are_refused_before_the_work(tmp_path: Path) -> None:
    engine = tilefuse.load("espcn-x4", memory="512MiB", backend="torch_eager")
    write_sparse(tmp_path / "in.tif", 20_000, 20_000)

    def never(done: int, total: int) -> None:
        raise AssertionError("work began")

    for name, error, message in (
        ("out.jpg", UsageError, "past the 65500 px a side that JPEG can hold; use PNG or TIFF"),
        ("out.webp", UsageError, "past the 16383 px a side that WebP can hold"),
    ):
        with pytest.raises(error, match=message):
            engine.run_file(tmp_path / "in.tif", tmp_path / name, progress=never)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tif"]


def test_webp_says_what_its_encoder_holds() -> None:
    from tilefuse.storage.base import RasterInfo

    info = RasterInfo(16_000, 16_000, 3, np.dtype(np.uint8))
    with pytest.raises(CapacityError, match=r"encoded as a whole, which takes about 2\.9 GiB, and 512"):
        check_webp_memory(info, 512 * MIB)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_6000x5000_under_768_mib(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "in.tif", photograph(5000, 6000), tile=(256, 256), compression="zlib", photometric="rgb"
    )
    os.sync()
    found = measured("job", tmp_path / "in.tif", tmp_path / "out.npy", "768MiB", "none")
    assert found["growth_bytes"] <= 768 * MIB
    print(f"end to end {found['seconds'] / found['compute_seconds']:.3f} of pure compute")
