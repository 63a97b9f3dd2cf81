"""The memory budget holds for the whole process, whatever the image's size."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tilefuse
from tests.attacks.rasters import write_sparse
from tilefuse.errors import CapacityError, UsageError
from tilefuse.planner import Plan
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
def test_peak_within_budget(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held in memory, the result alone (101 MiB) would pass the budget."""
    # Who was measured to be fastest by another test is none of this one's.
    monkeypatch.setenv("TILEFUSE_CACHE_DIR", str(tmp_path / "cache"))
    Image.fromarray(photograph(1300, 1700)).save(tmp_path / "in.png", compress_level=1)
    found = measured("job", tmp_path / "in.png", tmp_path / f"out{suffix}", "96MiB", "deflate")
    assert found["windows"] > 1
    assert found["growth_bytes"] <= 96 * MIB
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.size == (6800, 5200)


def test_encoders_hold_what_is_kept_back_for_them(tmp_path: Path) -> None:
    """Rows of 20 KB, more of them than any encoder keeps."""
    found = measured("encoders", tmp_path)
    assert len(found) == 6
    for name, (growth, planned) in found.items():
        assert growth <= planned, name
        assert planned <= 4 * growth, name


def test_tiles_that_are_decoded_as_a_whole_count_against_the_budget(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", np.zeros((4096, 4096), np.uint8), tile=(4096, 4096), compression="zlib")
    engine = tilefuse.load("espcn-x4", memory="32MiB", backend="torch_eager", schedule="windows")
    with pytest.raises(CapacityError, match=r"needs about [34]\d\.\d MiB and 32\.0 MiB is allowed"):
        engine.run_file(tmp_path / "in.tif", tmp_path / "out.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["in.tif"]


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


@pytest.mark.thorough
def test_rows_of_a_held_image_stay_within_the_budget() -> None:
    found = measured("rows", "112MiB")
    assert found["growth_bytes"] <= 112 * MIB
    # The estimate is what the least stripes are chosen by.
    assert found["growth_bytes"] == pytest.approx(found["estimated_bytes"], rel=0.2)


def test_webp_is_held_by_this_machine_whatever_a_gpu_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilefuse import streamed_job
    from tilefuse.storage.base import RasterInfo

    monkeypatch.setattr(streamed_job, "memory_budget", lambda device: {"cpu": 512 * MIB}[device])
    made = replace(tilefuse.load("espcn-x4").plan(4000, 4000), device="cuda:0", memory_bytes=1 << 40)
    job = streamed_job.StreamJob(tmp_path / "in.tif", tmp_path / "out.webp")
    with pytest.raises(CapacityError, match="encoded as a whole"):
        streamed_job.check_result(job, RasterInfo(16_000, 16_000, 3, np.dtype(np.uint8)), made)


def test_the_estimate_of_ncnn_is_what_it_was_seen_to_take(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    write_sparse(tmp_path / "in.tif", 5000, 6000)
    plans: list[Plan] = []

    def stop(plan: Plan) -> None:
        plans.append(plan)
        raise UsageError("planned")

    for backend in ("ncnn", "torch_eager"):
        engine = tilefuse.load("espcn-x4", memory="768MiB", backend=backend, tile=192, measure_seconds=0)
        with pytest.raises(UsageError, match="planned"):
            engine.run_file(tmp_path / "in.tif", tmp_path / "out.npy", on_plan=stop)
    # 305 MiB were measured of the whole process for an RGB image in such windows; this one is gray.
    assert plans[0].peak_bytes >= 280 * MIB
    assert plans[1].peak_bytes < plans[0].peak_bytes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_file_system_is_5_and_goes_on_once_there_is_space(tmp_path: Path) -> None:
    """A file system in memory of 6 MiB, most of it taken by something else while the job runs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        source, reference, output = tmp_path / "in.npy", tmp_path / "reference.tif", disk / "out.tif"
        np.save(source, np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))
        engine = tilefuse.load("espcn-x4", tile=32, backend="torch_eager", measure_seconds=0)
        total = engine.run_file(source, reference).windows

        def fill(done: int, _: int) -> None:
            if done == 10:
                with contextlib.suppress(OSError), open(disk / "others", "wb", buffering=0) as others:
                    while True:
                        others.write(bytes(4096))

        with pytest.raises(CapacityError, match=r"no space left .* --resume") as raised:
            engine.run_file(source, output, progress=fill)
        assert raised.value.exit_code == 5
        assert not output.exists()
        (disk / "others").unlink()
        report = engine.run_file(source, output, resume=True)
        assert 9 <= report.resumed < total
        assert output.read_bytes() == reference.read_bytes()
        assert [path.name for path in disk.iterdir()] == ["out.tif"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_6000x5000_under_768_mib(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "in.tif", photograph(5000, 6000), tile=(256, 256), compression="zlib", photometric="rgb"
    )
    os.sync()
    found = measured("job", tmp_path / "in.tif", tmp_path / "out.npy", "768MiB", "none")
    assert found["growth_bytes"] <= 768 * MIB
    assert found["growth_bytes"] <= 1.1 * found["estimated_bytes"]
    print(f"end to end {found['seconds'] / found['compute_seconds']:.3f} of pure compute")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_result_past_4_gib_is_a_bigtiff_that_reads_back(tmp_path: Path) -> None:
    """Crops of the input, run by themselves in windows of the same size, give the same samples."""
    import zarr

    height, width, edge, margin = 6600, 7000, 260, 20
    pixels = photograph(height, width).astype(np.uint16) * 251
    tifffile.imwrite(tmp_path / "in.tif", pixels, tile=(256, 256), compression="zlib", photometric="rgb")
    found = measured("job", tmp_path / "in.tif", tmp_path / "out.tif", "768MiB", "none")
    assert found["growth_bytes"] <= 768 * MIB
    assert (tmp_path / "out.tif").stat().st_size > 1 << 32
    engine = tilefuse.load("espcn-x4", tile=found["tile"], measure_seconds=0)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_bigtiff
        assert file.pages[0].shape == (4 * height, 4 * width, 3)
        result = zarr.open(file.aszarr(), mode="r")
        for y, x in ((0, 0), (3000, 6000), (height - edge, width - edge), (height - edge, 100)):
            np.save(tmp_path / "crop.npy", pixels[y : y + edge, x : x + edge])
            engine.run_file(tmp_path / "crop.npy", tmp_path / "crop_out.npy", overwrite=True)
            # At cuts that are no border of the image the crop lacks what the network sees there.
            cut = tuple(
                slice(4 * (margin if low else 0), 4 * (edge - (margin if low + edge < size else 0)))
                for low, size in ((y, height), (x, width))
            )
            expected = np.load(tmp_path / "crop_out.npy")[cut]
            there = result[4 * y : 4 * (y + edge), 4 * x : 4 * (x + edge)][cut]
            assert expected.std() > 1000
            assert np.array_equal(there, expected)
