"""Bad rasters, bad outputs: one named error, quickly, and nothing under the output's name."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

import tilefuse
from tests.attacks import rasters
from tilefuse.errors import ImageError, UsageError
from tilefuse.storage import open_raster

pytestmark = pytest.mark.thorough

pytest.importorskip("tifffile")
pytest.importorskip("zarr")


@pytest.fixture(scope="module")
def engine() -> tilefuse.Engine:
    return tilefuse.load("espcn-x4", tile=16, backend="torch_eager")


def test_every_bad_raster_is_refused_in_one_line_that_names_it(tmp_path: Path) -> None:
    for name, path, expected in rasters.build(tmp_path):
        started = time.process_time()
        with pytest.raises(ImageError) as raised:
            open_raster(path, tmp_path, 1 << 20).read(0, 64, 0, 64)
        message = str(raised.value)
        assert expected in message, (name, message)
        assert message.isprintable(), name
        assert time.process_time() - started < 3, name


def test_damage_at_random_raises_nothing_but_image_errors(tmp_path: Path) -> None:
    import tifffile

    generator = np.random.default_rng(0)
    path = tmp_path / "in.tif"
    pixels = generator.integers(0, 256, (64, 64, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(32, 32), compression="zlib", photometric="rgb")
    good = path.read_bytes()
    refused = 0
    for _ in range(150):
        damaged = bytearray(good)
        # The header and directory, where every byte means something, and the tiles.
        for place in generator.integers(0, generator.choice([400, len(good)]), 2):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            reader = open_raster(path, tmp_path, 1 << 20)
            info = reader.info
            if info.height * info.width <= 1 << 20:
                reader.read(0, info.height, 0, info.width)
            reader.close()
        except ImageError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("kind", ["link", "inside", "itself", "folder", "missing folder", "read-only"])
def test_outputs_that_can_not_be(engine: tilefuse.Engine, tmp_path: Path, kind: str) -> None:
    import zarr

    source = tmp_path / "in.zarr"
    zarr.create_array(str(source), shape=(20, 20), chunks=(20, 20), dtype="uint8")[:] = 1
    outputs = {
        "link": (tmp_path / "link.npy", "symbolic link"),
        "inside": (source / "out.npy", "lies in the input"),
        "itself": (source, "lies in the input"),
        "folder": (tmp_path / "folder.npy", "not a regular file"),
        "missing folder": (tmp_path / "none" / "out.npy", "does not exist"),
        "read-only": (tmp_path / "closed" / "out.npy", "read-only"),
    }
    output, expected = outputs[kind]
    (tmp_path / "link.npy").symlink_to(tmp_path / "elsewhere.npy")
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "closed").mkdir(mode=0o500)
    if kind == "read-only" and os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=expected):
        engine.run_file(source, output, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_samples_that_are_no_numbers_are_named(engine: tilefuse.Engine, tmp_path: Path) -> None:
    pixels = np.zeros((40, 40), np.float32)
    pixels[30, 5] = np.nan
    np.save(tmp_path / "in.npy", pixels)
    with pytest.raises(ImageError, match=r"in\.npy: samples in rows \d+ to \d+, columns 0 to \d+ are NaN"):
        engine.run_file(tmp_path / "in.npy", tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()
