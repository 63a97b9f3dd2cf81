"""Rasters in and out: every format's windows, and every result equal to the one computed in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tilefuse
from tests.attacks.rasters import write_sparse
from tilefuse.backends import registry
from tilefuse.errors import BackendError, CapacityError, ImageError, UsageError
from tilefuse.images import read_image
from tilefuse.storage import open_raster
from tilefuse.storage.base import Metadata
from tilefuse.storage.flat import FlatRaster
from tilefuse.storage.georeference import scaled
from tilefuse.storage.oriented import Upright

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")
pytest.importorskip("pyvips")

SIZE = (63, 101)
MEMORY = 1 << 26


def noise(bands: int = 3, dtype: str = "uint8", size: tuple[int, int] = SIZE) -> np.ndarray:
    values = np.random.default_rng(bands).random((*size, bands), np.float32)
    return values if dtype == "float32" else (values * np.iinfo(dtype).max).astype(dtype)


def write_zarr(path: Path, pixels: np.ndarray, version: int, **options: object) -> None:
    chunks = tuple(min(32, n) for n in pixels.shape)
    array = zarr.create_array(
        str(path), shape=pixels.shape, chunks=chunks, dtype=pixels.dtype.name, zarr_format=version, **options
    )
    array[:] = pixels


TIFFS = {
    "tiled deflate": {"tile": (32, 32), "compression": "zlib", "predictor": True},
    "tiled zstd big": {"tile": (32, 48), "compression": "zstd", "bigtiff": True},
    "tiled raw": {"tile": (16, 16)},
    "strips lzw": {"rowsperstrip": 7, "compression": "lzw"},
    "one strip": {"rowsperstrip": 63},
    "big-endian": {"rowsperstrip": 5, "byteorder": ">"},
    "big-endian deflate": {"rowsperstrip": 5, "byteorder": ">", "compression": "zlib", "predictor": True},
}


@pytest.mark.parametrize("layout", TIFFS)
@pytest.mark.parametrize(("bands", "dtype"), [(3, "uint8"), (1, "uint16"), (3, "float32"), (7, "uint8")])
def test_windows_of_tiff(tmp_path: Path, layout: str, bands: int, dtype: str) -> None:
    options = dict(TIFFS[layout])
    pixels, path = noise(bands, dtype), tmp_path / "in.tif"
    head = {key: options.pop(key) for key in ("bigtiff", "byteorder") if key in options}
    with tifffile.TiffWriter(path, **head) as writer:
        photometric = "rgb" if bands == 3 else "minisblack"
        planar = {"planarconfig": "contig"} if bands > 1 else {}
        writer.write(pixels if bands > 1 else pixels[..., 0], photometric=photometric, **planar, **options)
    check_windows(path, pixels)


def check_windows(path: Path, pixels: np.ndarray) -> None:
    reader = open_raster(path, path.parent, MEMORY)
    assert (reader.info.height, reader.info.width, reader.info.bands) == pixels.shape
    assert reader.info.dtype == pixels.dtype
    height, width, _ = pixels.shape
    for y0, y1, x0, x1 in (
        (0, height, 0, width),
        (0, 1, 0, 1),
        (height - 1, height, width - 1, width),
        (7, 40, 30, 99),
    ):
        block = reader.read(y0, y1, x0, x1)
        assert block.dtype.isnative
        np.testing.assert_array_equal(block, pixels[y0:y1, x0:x1])
    reader.close()
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_windows_of_separate_planes_ome_and_sparse_files(tmp_path: Path) -> None:
    pixels = noise()
    for name, options in (
        ("planar", {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib", "tile": (32, 32)}),
        ("ome", {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "ome": True, "compression": "zlib"}),
    ):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "in.tif", pixels.transpose(2, 0, 1), **options)
        check_windows(tmp_path / name / "in.tif", pixels)
    (tmp_path / "sparse").mkdir()
    write_sparse(tmp_path / "sparse" / "in.tif", *SIZE, tile=32)
    check_windows(tmp_path / "sparse" / "in.tif", np.zeros((*SIZE, 1), np.uint8))


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}])
def test_white_is_zero_reads_as_white(tmp_path: Path, options: dict[str, object]) -> None:
    pixels = noise(1)
    tifffile.imwrite(tmp_path / "in.tif", 255 - pixels[..., 0], photometric="miniswhite", **options)
    check_windows(tmp_path / "in.tif", pixels)


@pytest.mark.parametrize("version", [2, 3])
def test_windows_of_zarr(tmp_path: Path, version: int) -> None:
    pixels = noise(3, "uint16")
    write_zarr(tmp_path / "hwc.zarr", pixels, version)
    reader = open_raster(tmp_path / "hwc.zarr", tmp_path, MEMORY)
    np.testing.assert_array_equal(reader.read(5, 60, 33, 101), pixels[5:60, 33:101])
    write_zarr(tmp_path / "chw.zarr", np.ascontiguousarray(pixels.transpose(2, 0, 1)), version)
    reader = open_raster(tmp_path / "chw.zarr", tmp_path, MEMORY)
    np.testing.assert_array_equal(reader.read(5, 60, 33, 101), pixels[5:60, 33:101])
    group = zarr.open_group(str(tmp_path / "ome.zarr"), mode="w", zarr_format=version)
    group.create_array("0", shape=(1, 3, 1, *SIZE), dtype="uint16")[:] = pixels.transpose(2, 0, 1)[None, :, None]
    group.attrs["multiscales"] = [{"axes": [{"name": n} for n in "tczyx"], "datasets": [{"path": "0"}]}]
    reader = open_raster(tmp_path / "ome.zarr", tmp_path, MEMORY)
    np.testing.assert_array_equal(reader.read(5, 60, 33, 101), pixels[5:60, 33:101])


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_windows_of_npy(tmp_path: Path, order: str) -> None:
    pixels = noise(3, "uint16")
    np.save(tmp_path / "in.npy", pixels.astype(order))
    check_windows(tmp_path / "in.npy", pixels)


def test_windows_of_files_that_come_from_top_to_bottom(tmp_path: Path) -> None:
    pixels = noise()
    images = {"in.png": {}, "in.webp": {"lossless": True}, "in.jpg": {"quality": 90}, "in2.jpg": {"progressive": True}}
    for name, options in images.items():
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        Image.fromarray(pixels).save(folder / name, **options)
        expected = np.asarray(Image.open(folder / name))
        reader = open_raster(folder / name, folder, MEMORY)
        block = reader.read(0, 63, 0, 101)
        # Two JPEG decoders may differ by a level or so in their inverse transform.
        assert np.abs(block.astype(int) - expected).max() <= (4 if name.endswith("jpg") else 0)
        assert [p.name for p in folder.iterdir()] == [name]
        reader.close()


def test_what_decoders_hold_whole_is_refused_with_its_cost(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "p.jpg", progressive=True)
    with pytest.raises(CapacityError, match=r"interlaced JPEG of 101 x 63 px is decoded as a whole, which takes 37"):
        open_raster(tmp_path / "p.jpg", tmp_path, 1000)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_stored_turned_read_upright(tmp_path: Path, orientation: int) -> None:
    from tilefuse.images.metadata import upright

    pixels = noise()
    np.save(tmp_path / "in.npy", pixels)
    reader = Upright(open_raster(tmp_path / "in.npy", tmp_path, MEMORY), orientation)
    expected = upright(pixels, orientation)
    assert (reader.info.height, reader.info.width) == expected.shape[:2]
    np.testing.assert_array_equal(reader.read(3, 50, 11, 60), expected[3:50, 11:60])


def test_a_raster_takes_blocks_in_any_order(tmp_path: Path) -> None:
    pixels = noise()
    with open(tmp_path / "raster", "w+b") as stream:
        raster = FlatRaster(stream.fileno(), 40, pixels.shape, pixels.dtype)
        places = [(y, x) for y in range(0, 63, 20) for x in range(0, 101, 30)]
        for y, x in reversed(places):
            raster.write(y, x, pixels[y : y + 20, x : x + 30])
        raster.finish()
        np.testing.assert_array_equal(raster.read(0, 63, 0, 101), pixels)
        with pytest.raises(ImageError, match="ends in row 63"):
            raster.read(63, 64, 0, 101)


@pytest.fixture(scope="module")
def engine() -> tilefuse.Engine:
    return tilefuse.load("espcn-x4", tile=32, backend="torch_eager")


def load(path: Path) -> np.ndarray:
    match path.suffix:
        case ".npy":
            return np.load(path)
        case ".zarr":
            return np.asarray(zarr.open(str(path), mode="r")[:])
        case ".tif":
            return tifffile.imread(path)
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(("bands", "dtype"), [(3, "uint8"), (1, "uint8"), (4, "uint8"), (2, "uint16"), (3, "float32")])
def test_streamed_equals_in_memory(engine: tilefuse.Engine, tmp_path: Path, bands: int, dtype: str) -> None:
    pixels = noise(bands, dtype, (40, 50))
    if bands in (2, 4):
        # Clear, opaque and soft regions.
        pixels[:, :20, -1] = 0
        pixels[:, 30:, -1] = np.iinfo(dtype).max
    pixels = pixels[..., 0] if bands == 1 else pixels
    np.save(tmp_path / "in.npy", pixels)
    expected = engine(pixels)
    suffixes = [".npy", ".zarr", ".tif", *([".png", ".webp"] if dtype == "uint8" else [])]
    for suffix in suffixes:
        output = tmp_path / f"out{suffix}"
        report = engine.run_file(tmp_path / "in.npy", output)
        result = load(output)
        if suffix == ".webp" and bands == 1:
            # WebP knows no gray.
            result = result[..., 0]
        assert result.dtype == expected.dtype
        difference = np.abs(result.astype(np.float64) - expected)
        assert difference.max() <= (1e-5 if dtype == "float32" else 1), suffix
        assert report.windows > 1
    assert [p.name for p in tmp_path.iterdir() if "tilefuse" in p.name] == []


def test_jpeg_and_deep_zoom(engine: tilefuse.Engine, tmp_path: Path) -> None:
    pixels = np.asarray(Image.fromarray(noise(3, size=(6, 8))).resize((96, 80), Image.Resampling.BICUBIC))
    np.save(tmp_path / "in.npy", pixels)
    expected = engine(pixels)
    engine.run_file(tmp_path / "in.npy", tmp_path / "out.jpg", resume=True)
    assert np.abs(load(tmp_path / "out.jpg").astype(int) - expected).mean() < 2
    engine.run_file(tmp_path / "in.npy", tmp_path / "out.dzi")
    levels = sorted((p for p in (tmp_path / "out_files").iterdir() if p.is_dir()), key=lambda p: int(p.name))
    corner = np.asarray(Image.open(levels[-1] / "0_0.png"))
    np.testing.assert_array_equal(corner, expected[: corner.shape[0], : corner.shape[1]])
    assert 'Width="384"' in (tmp_path / "out.dzi").read_text()


@pytest.mark.parametrize("compression", ["deflate", "zstd", "none"])
def test_big_tiff_holds_the_same_in_every_compression(
    engine: tilefuse.Engine, tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilefuse.storage.tiff_encode.BIG_BYTES", 1000)
    pixels = noise(3, size=(70, 80))
    np.save(tmp_path / "in.npy", pixels)
    engine.run_file(tmp_path / "in.npy", tmp_path / "out.tif", compression=compression)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.is_bigtiff
        assert file.pages[0].tile == (256, 256)
    np.testing.assert_array_equal(load(tmp_path / "out.tif"), engine(pixels))


def test_value_ranges_and_bands(engine: tilefuse.Engine, tmp_path: Path) -> None:
    unit = noise(5, "float32", (40, 50))
    measured = unit * 400 - 100
    np.save(tmp_path / "in.npy", measured)
    engine.run_file(tmp_path / "in.npy", tmp_path / "out.tif", per_band=True, value_range=(-100, 300))
    result = load(tmp_path / "out.tif")
    assert result.shape == (160, 200, 5)
    assert result.min() < -100
    for band in range(5):
        np.testing.assert_allclose(result[..., band], engine(unit[..., band]) * 400 - 100, atol=0.01)
    with pytest.raises(ImageError, match="5 bands, neither gray nor RGB; --per-band"):
        engine.run_file(tmp_path / "in.npy", tmp_path / "other.tif")
    with pytest.raises(UsageError, match=r"\.png holds no 5 bands"):
        engine.run_file(tmp_path / "in.npy", tmp_path / "out.png", per_band=True)


def test_the_range_of_a_float_tiff_is_its_own(engine: tilefuse.Engine, tmp_path: Path) -> None:
    unit = noise(1, "float32", (40, 50))[..., 0]
    tags = [(340, 11, 1, 10.0, True), (341, 11, 1, 30.0, True)]
    tifffile.imwrite(tmp_path / "in.tif", unit * 20 + 10, extratags=tags, tile=(16, 16))
    engine.run_file(tmp_path / "in.tif", tmp_path / "out.tif", resume=True)
    np.testing.assert_allclose(load(tmp_path / "out.tif"), engine(unit) * 20 + 10, atol=1e-3)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert (file.pages[0].tags[340].value, file.pages[0].tags[341].value) == (10.0, 30.0)


def test_metadata_travels_and_scales(engine: tilefuse.Engine, tmp_path: Path) -> None:
    keys = (1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1, 1)
    tags = [
        (33550, 12, 3, (10.0, 10.0, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 4e6, 0.0), True),
        (34735, 3, len(keys), keys, True),
        (42113, 2, 3, "-1", True),
    ]
    tifffile.imwrite(
        tmp_path / "in.tif",
        noise(size=(40, 50)),
        tile=(16, 16),
        photometric="rgb",
        extratags=tags,
        iccprofile=b"profile",
        resolution=(300, 300),
        resolutionunit="INCH",
    )
    engine.run_file(tmp_path / "in.tif", tmp_path / "out.tif", resume=True)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        found = file.pages[0].tags
        assert found[33550].value == (2.5, 2.5, 0.0)
        assert found[33922].value == (0.0, 0.0, 0.0, 5e5, 4e6, 0.0)
        assert found[34735].value == keys
        assert found[42113].value == "-1"
        assert file.pages[0].get_resolution("inch") == (1200, 1200)
        assert bytes(found[34675].value) == b"profile"
        assert file.pages[0].photometric == 2


def with_exif(path: Path) -> None:
    """Write a picture stored turned, with texts, an exposure and a place."""
    exif = Image.Exif()
    exif[271], exif[274], exif[306], exif[315] = "Maker", 6, "2024:05:06 07:08:09", "Somebody"
    exif.get_ifd(0x8769).update({33434: 0.01, 36867: "2024:05:06 07:08:09", 40962: 50})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 12.0, 0.0)})
    Image.fromarray(noise(size=(40, 50))).save(path, exif=exif)


@pytest.mark.parametrize("target", [".tif", ".png", ".jpg", ".webp"])
@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
def test_exif_travels_as_in_memory(engine: tilefuse.Engine, tmp_path: Path, source: str, target: str) -> None:
    given = tmp_path / f"in{source}"
    if source == ".tif":
        tags = [(271, 2, 6, b"Maker\0", True), (274, 3, 1, 6, True), (306, 2, 20, b"2024:05:06 07:08:09\0", True)]
        tifffile.imwrite(given, noise(size=(40, 50)), tile=(16, 16), photometric="rgb", extratags=tags, metadata=None)
    else:
        with_exif(given)
    held = engine.run_file(given, tmp_path / f"held{target}")
    streamed = engine.run_file(given, tmp_path / f"streamed{target}", resume=True)
    expected, found = (read_image(tmp_path / f"{name}{target}") for name in ("held", "streamed"))
    assert found.pixels.shape == (200, 160, 3)
    assert b"Maker" in found.exif
    assert described(found.exif) == described(expected.exif)
    assert [note for note in streamed.notes if "EXIF" in note] == [note for note in held.notes if "EXIF" in note]


def described(block: bytes) -> dict[int, object]:
    exif = Image.Exif()
    exif.load(block)
    # What the standard asks for in every block, which libvips adds.
    required = {36864, 37121, 40960, 40961}
    ifds = {ifd: {k: v for k, v in exif.get_ifd(ifd).items() if k not in required} for ifd in (0x8769, 0x8825)}
    return {tag: value for tag, value in exif.items() if tag not in ifds} | {k: v for k, v in ifds.items() if v}


def test_a_raster_keeps_no_exif_and_says_so(engine: tilefuse.Engine, tmp_path: Path) -> None:
    with_exif(tmp_path / "in.jpg")
    report = engine.run_file(tmp_path / "in.jpg", tmp_path / "out.npy")
    assert report.notes == (".npy does not keep EXIF; TIFF, PNG, JPEG and WebP do",)
    assert np.load(tmp_path / "out.npy").shape == (200, 160, 3)


def ground(geo: dict[int, tuple[float, ...]], i: float, j: float) -> tuple[float, float]:
    """Where a raster position lies on the ground (GeoTIFF 1.1, annex B.6)."""
    if 34264 in geo:
        m = geo[34264]
        return m[0] * i + m[1] * j + m[3], m[4] * i + m[5] * j + m[7]
    point, size = geo[33922], geo[33550]
    return point[3] + (i - point[0]) * size[0], point[4] - (j - point[1]) * size[1]


@pytest.mark.parametrize("raster_type", [1, 2])
@pytest.mark.parametrize("kind", ["tie", "matrix"])
def test_a_pixel_stays_on_its_ground(raster_type: int, kind: str) -> None:
    """The corner of the whole image is where it was, whichever way positions count."""
    keys = (34735, 3, (1, 1, 0, 1, 1025, 0, 1, raster_type))
    tie = ((33550, 12, (10.0, 20.0, 0.0)), (33922, 12, (3.0, 5.0, 0.0, 5e5, 4e6, 0.0)))
    matrix = ((34264, 12, (10.0, 1.0, 0.0, 5e5, 2.0, -20.0, 0.0, 4e6, *(0.0,) * 7, 1.0)),)
    before = (keys, *(tie if kind == "tie" else matrix))
    after = scaled(Metadata(geo=before), 4).geo
    corner = 0.0 if raster_type == 1 else -0.5
    old, new = ({number: value for number, _, value in geo} for geo in (before, after))
    for x, y in ((0, 0), (7, 0), (0, 9), (50, 40)):
        assert ground(new, 4 * x + corner, 4 * y + corner) == pytest.approx(ground(old, x + corner, y + corner))


def test_ome_sizes_scale() -> None:
    xml = '<OME><Pixels SizeX="50" SizeY="40" PhysicalSizeX="0.5" PhysicalSizeY="2.0" SizeC="3"/></OME>'
    found = scaled(Metadata(ome=xml), 4).ome
    assert found == '<OME><Pixels SizeX="200" SizeY="160" PhysicalSizeX="0.125" PhysicalSizeY="0.5" SizeC="3"/></OME>'


def test_a_backend_that_can_not_compile_makes_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
    engine = tilefuse.load("espcn-x4")
    first = engine.serving.backend

    def refuse(*_: object, **__: object) -> object:
        raise BackendError("no room for it in here")

    kind = type(registry.get(first))
    for method in {"compile", "compile_pixels"} & {*dir(kind)}:
        monkeypatch.setattr(kind, method, refuse)
    report = engine.run_file(tmp_path / "in.npy", tmp_path / "out.npy")
    assert report.plan.backend != first
    assert any(f"{first} can't compile this window: no room for it in here" in reason for reason in report.plan.why)
