"""A result that is encoded while it is computed is the one that is encoded afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilefuse
from tests.pictures import noise
from tilefuse import held_encoding, jobs
from tilefuse.errors import CapacityError, DeviceError
from tilefuse.held_encoding import PassingResult
from tilefuse.images import Picture, jpeg_writer, png_writer, read_image, write_image
from tilefuse.images.rows import ALL_ROWS, Rows
from tilefuse.runners import PixelRunner
from tilefuse.storage.gate import RowGate
from tilefuse.tiling import Grid, Span

HEIGHT, WIDTH, TILE = 90, 60, 24


@pytest.fixture(scope="module")
def engine() -> tilefuse.Engine:
    return tilefuse.load("espcn-x2", tile=TILE, backend="torch_eager", measure_seconds=0)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Encode pieces of a few rows, give memory back page by page, and leave no thread."""
    monkeypatch.setattr(jpeg_writer, "_STRIP_PIXELS", 16 * 2 * WIDTH)
    monkeypatch.setattr(png_writer, "_BLOCK_BYTES", 12 * 3 * 2 * WIDTH)
    monkeypatch.setattr(held_encoding, "_STEP_BYTES", 4096)
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.endswith("-encode")]


CASES = {
    "colour": lambda: Picture(noise((HEIGHT, WIDTH, 3), "uint8")),
    "gray": lambda: Picture(noise((HEIGHT, WIDTH, 1), "uint8")),
    "deep": lambda: Picture(noise((HEIGHT, WIDTH, 3), "uint16")),
    "float": lambda: Picture(noise((HEIGHT, WIDTH, 3), "float32")),
    "alpha": lambda: Picture(noise((HEIGHT, WIDTH, 3), "uint8"), noise((HEIGHT, WIDTH), "uint8")),
    "even alpha": lambda: Picture(noise((HEIGHT, WIDTH, 3), "uint8"), np.full((HEIGHT, WIDTH), 77, np.uint8)),
}


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.tif", "out.webp"])
@pytest.mark.parametrize("case", CASES)
def test_files_are_the_same(engine: tilefuse.Engine, tmp_path: Path, name: str, case: str) -> None:
    write_image(tmp_path / "in.tif", CASES[case]())
    engine.run_file(tmp_path / "in.tif", tmp_path / name)
    result, plan, _ = engine.run_picture(read_image(tmp_path / "in.tif"))
    assert plan.windows > 6
    write_image(tmp_path / f"after_{name}", result)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"after_{name}").read_bytes()


def test_rows_of_the_row_schedule_are_the_same(tmp_path: Path) -> None:
    rows = tilefuse.load("espcn-x2", schedule="rows", tile=8)
    write_image(tmp_path / "in.png", CASES["colour"]())
    report = rows.run_file(tmp_path / "in.png", tmp_path / "out.png")
    assert report.plan.schedule == "rows"
    expected = rows.run_picture(read_image(tmp_path / "in.png"))[0]
    np.testing.assert_array_equal(read_image(tmp_path / "out.png").pixels, expected.pixels)


def test_rows_are_encoded_before_the_last_window_is_run(engine: tilefuse.Engine) -> None:
    encoded = threading.Event()
    picture = CASES["colour"]()
    seen: list[np.ndarray] = []

    def encode(result: Picture, rows: Rows) -> None:
        rows.wait(1)
        seen.append(result.pixels[0].copy())
        encoded.set()
        rows.wait(result.height)

    def progress(done: int, total: int) -> None:
        if done == total - 1:
            assert encoded.wait(10), "the encoder waits for the whole"

    engine.encode_picture(picture, encode, progress=progress)
    np.testing.assert_array_equal(seen[0], engine.run_picture(picture)[0].pixels[0])


@pytest.mark.parametrize("case", ["float", "alpha"])
def test_what_is_final_as_a_whole_alone_is_encoded_afterwards(engine: tilefuse.Engine, case: str) -> None:
    done: list[int] = []

    def encode(_: Picture, rows: Rows) -> None:
        assert rows is ALL_ROWS
        assert done[-1] == done_of[-1]

    done_of: list[int] = []

    def progress(count: int, total: int) -> None:
        done.append(count)
        done_of.append(total)

    engine.encode_picture(CASES[case](), encode, progress=progress)


def test_a_failing_window_ends_the_encoder_and_leaves_no_file(
    engine: tilefuse.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "in.png", CASES["colour"]())
    original, calls = PixelRunner.run, [0]

    def failing(self: PixelRunner, tile: Any) -> Any:
        calls[0] += 1
        if calls[0] == 9:
            raise DeviceError("broken")
        return original(self, tile)

    monkeypatch.setattr(PixelRunner, "run", failing)
    with pytest.raises(DeviceError, match="broken"):
        engine.run_file(tmp_path / "in.png", tmp_path / "out.png")
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_a_failing_encoder_stops_the_windows() -> None:
    engine = tilefuse.load("espcn-x2", tile=8, backend="torch_eager", measure_seconds=0)
    failed = threading.Event()

    def encode(_: Picture, rows: Rows) -> None:
        rows.wait(1)
        failed.set()
        raise CapacityError("full")

    counted: list[int] = []

    def progress(done: int, _: int) -> None:
        counted.append(done)
        if done == 30:
            failed.wait(10)
            # The error is told by the thread's end, which comes a moment later.
            threading.Event().wait(0.05)

    with pytest.raises(CapacityError, match="full"):
        engine.encode_picture(CASES["colour"](), encode, progress=progress)
    assert len(counted) < 40


def test_an_image_of_one_window_is_what_the_backend_made(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tilefuse.load("espcn-x2", tile=0, backend="torch_eager", measure_seconds=0)
    original, made = PixelRunner.run, list[np.ndarray]()

    def run(self: PixelRunner, tile: Any) -> Any:
        result, finite = original(self, tile)
        made.append(result)
        return result, finite

    monkeypatch.setattr(PixelRunner, "run", run)
    monkeypatch.setattr(jobs.np, "empty", np.zeros)
    result = whole.run_picture(CASES["colour"]())[0].pixels
    assert np.shares_memory(result, made[0])
    assert result.any()
    assert result.flags.c_contiguous


def test_memory_of_passed_rows_is_given_back() -> None:
    spans = (Span(0, 8, 0, 16, 0), Span(8, 16, 16, 32, 0))
    grid = Grid(16, 512, (16, 512), (8, 512), (32, 1024), spans, (Span(0, 512, 0, 1024, 0),))
    gate = RowGate(grid, (), lambda: False)
    result = PassingResult((1, 32, 1024, 3), np.dtype(np.uint8), gate)
    result.pixels[:] = 7
    gate.stored(grid[0])
    result.wait(16)
    result.passed(3)
    # Nine KiB are two pages and a bit.
    flat = result.pixels.reshape(-1)
    assert not flat[:8192].any()
    assert (flat[8192:] == 7).all()
    result.passed(2)
    result.passed(16)
    assert not flat[: 48 * 1024].any()
    assert (flat[48 * 1024 :] == 7).all()
    gate.stored(grid[1])
    result.wait(32)
