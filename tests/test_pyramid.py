"""Reduced copies in a TIFF: right sizes and means, found by GDAL and by the readers of OME images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import tilefuse
from tests.test_storage import noise
from tilefuse.errors import UsageError
from tilefuse.storage.base import Metadata, RasterInfo
from tilefuse.storage.flat import FlatRaster
from tilefuse.storage.pyramid import halved, level_count
from tilefuse.storage.tiff_encode import CancelledError, encode_tiff

tifffile = pytest.importorskip("tifffile")
rasterio = pytest.importorskip("rasterio")

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def engine() -> tilefuse.Engine:
    return tilefuse.load("espcn-x4", backend="torch_eager", precision="fp32")


def raster_of(pixels: np.ndarray, path: Path) -> tuple[FlatRaster, RasterInfo]:
    path.write_bytes(pixels.tobytes())
    descriptor = os.open(path, os.O_RDONLY)
    return FlatRaster(descriptor, 0, pixels.shape, pixels.dtype), RasterInfo(*pixels.shape, pixels.dtype)


def test_halving_takes_means_and_repeats_odd_edges() -> None:
    block = np.array([[[1], [2], [3]], [[4], [5], [6]], [[7], [8], [9]]], np.uint8)
    assert halved(block, False)[..., 0].tolist() == [[3, 4], [8, 9]]
    floats = halved(block.astype(np.float32), False)[..., 0]
    assert floats.tolist() == [[3.0, 4.5], [7.5, 9.0]]


def test_colour_counts_as_it_is_opaque() -> None:
    block = np.zeros((2, 2, 2), np.uint8)
    block[0, 0] = (200, 255)
    block[1, 1] = (40, 0)
    assert halved(block, True)[0, 0].tolist() == [200, 64]


@pytest.mark.parametrize(("size", "count"), [((1, 1), 0), ((256, 256), 0), ((257, 3), 1), ((1000, 4100), 5)])
def test_levels_end_with_one_tile(size: tuple[int, int], count: int) -> None:
    assert level_count(*size) == count


@pytest.mark.parametrize(("bands", "dtype"), [(3, "uint8"), (1, "uint16"), (2, "float32")])
def test_gdal_finds_the_levels(tmp_path: Path, bands: int, dtype: str) -> None:
    pixels = noise(bands, dtype, (601, 700))
    raster, info = raster_of(pixels, tmp_path / "raw")
    encode_tiff(raster, info, tmp_path / "out.tif", "deflate", lambda: False, pyramid=True)
    os.close(raster.descriptor)
    expected = pixels
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.overviews(1) == [2, 4]
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), pixels)
    for level in range(2):
        expected = halved(expected, False)
        with rasterio.open(tmp_path / "out.tif", overview_level=level) as file:
            np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tif", "raw"]


def test_ome_readers_find_the_levels(tmp_path: Path) -> None:
    raster, info = raster_of(noise(1, "uint8", (601, 700)), tmp_path / "raw")
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="700" SizeY="601" SizeC="1" SizeZ="1" SizeT="1"><TiffData/>'
        "</Pixels></Image></OME>"
    )
    described = RasterInfo(info.height, info.width, 1, info.dtype, metadata=Metadata(ome=xml))
    encode_tiff(raster, described, tmp_path / "out.tif", "none", lambda: False, pyramid=True)
    os.close(raster.descriptor)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_ome
        assert [level.shape for level in file.series[0].levels] == [(601, 700), (301, 350), (151, 175)]


def test_cancelling_stops_and_leaves_no_file_of_its_own(tmp_path: Path) -> None:
    raster, info = raster_of(noise(3, "uint8", (601, 700)), tmp_path / "raw")
    calls = []

    def cancelled() -> bool:
        calls.append(1)
        return len(calls) > 4

    with pytest.raises(CancelledError):
        encode_tiff(raster, info, tmp_path / "out.tif", "none", cancelled, pyramid=True)
    os.close(raster.descriptor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tif", "raw"]


def test_a_job_writes_a_pyramid_that_runs_again(engine: tilefuse.Engine, tmp_path: Path) -> None:
    pixels = noise(3, "uint8", (80, 90))
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb", tile=(16, 16))
    engine.run_file(tmp_path / "in.tif", tmp_path / "out.tif", pyramid=True)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.overviews(1) == [2]
    # What has reduced copies is still one image, to both readers of this project.
    assert (
        tilefuse.load("espcn-x2", backend="torch_eager")
        .run_file(tmp_path / "out.tif", tmp_path / "again.png")
        .plan.output_width
        == 720
    )
    engine.run_file(tmp_path / "out.tif", tmp_path / "twice.tif", resume=True)
    with pytest.raises(UsageError, match="only TIFF holds a pyramid"):
        engine.run_file(tmp_path / "in.tif", tmp_path / "out.png", pyramid=True)


def test_gdal_reads_the_scaled_place_on_the_ground(engine: tilefuse.Engine, tmp_path: Path) -> None:
    place = rasterio.transform.Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 4_000_000.0)
    pixels = noise(3, "uint8", (40, 50))
    with rasterio.open(
        tmp_path / "in.tif", "w", driver="GTiff", height=40, width=50, count=3, dtype="uint8",
        crs="EPSG:32633", transform=place, tiled=True, blockxsize=16, blockysize=16, photometric="rgb",
    ) as file:  # fmt: skip
        file.write(np.moveaxis(pixels, -1, 0))
        bounds = file.bounds
    engine.run_file(tmp_path / "in.tif", tmp_path / "out.tif", pyramid=True)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs == rasterio.crs.CRS.from_epsg(32633)
        assert file.transform == place @ rasterio.transform.Affine.scale(0.25)
        assert file.bounds == bounds
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), engine(pixels))
