"""Streamed jobs and many files from the command line."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from tests.test_cli import MODEL, one_line, tilefuse
from tilefuse.api import Engine
from tilefuse.commands.inputs import Pair
from tilefuse.commands.progress import Pixels
from tilefuse.errors import UsageError
from tilefuse.interruptible import Terminated
from tilefuse.job_files import JobFiles
from tilefuse.journal import Journal

pytest.importorskip("tifffile")
pytest.importorskip("zarr")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.npy", "d.npy")):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24 + number, 3), np.uint8)
        if name.endswith("npy"):
            np.save(folder / name, pixels)
        else:
            Image.fromarray(pixels).save(folder / name)
    return folder


def test_many_at_once_equal_one_after_another(folder: Path, tmp_path: Path) -> None:
    for jobs in (1, 3):
        result = tilefuse("run", folder, "-o", tmp_path / str(jobs), "-m", MODEL, "--jobs", jobs, "--tile", 16)
        assert (result.exit_code, result.output) == (0, "")
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert names == ["a.png", "b.png", "c.npy", "d.npy"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_errors_are_collected_and_the_whole_goes_on_with_resume(folder: Path, tmp_path: Path) -> None:
    good = (folder / "c.npy").read_bytes()
    (folder / "c.npy").write_bytes(good[:500])
    out = tmp_path / "out"
    result = tilefuse("run", folder, "-o", out, "-m", MODEL, "--jobs", 2)
    assert result.exit_code == 7
    assert "1 of 4 images failed; the same command with --resume goes on and keeps what is done\n" in result.stderr
    one_line(tilefuse("run", folder, "-o", out, "-m", MODEL), 2, "already exists; give --resume to keep what is done")
    (folder / "c.npy").write_bytes(good)
    before = (out / "a.png").stat().st_mtime_ns
    result = tilefuse("run", folder, "-o", out, "-m", MODEL, "--resume", "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert {event["source"] for event in events} == {str(folder / "c.npy")}
    assert (out / "a.png").stat().st_mtime_ns == before
    result = tilefuse("run", folder, "-o", out, "-m", MODEL, "--resume")
    assert (result.exit_code, result.stderr) == (0, "tilefuse: every output is there and complete\n")


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_many_that_are_stopped_say_what_is_done_and_go_on(
    folder: Path, tmp_path: Path, stop: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    command = ("run", folder, "-m", MODEL, "--tile", 16)
    assert tilefuse(*command, "-o", whole).exit_code == 0
    run_file = Engine.run_file

    def stopped_at_c(engine: Engine, source: Path, output: Path, **options: object) -> object:
        if source.name == "c.npy":
            raise stop
        return run_file(engine, source, output, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "run_file", stopped_at_c)
        result = tilefuse(*command, "-o", out)
    assert result.exit_code == code
    words = "the same command with --resume goes on and keeps what is done"
    assert re.search(rf"; 2 of 4 images are done; {words}\n$", result.stderr), result.stderr
    result = tilefuse(*command, "-o", out, "--resume")
    assert result.exit_code == 0
    assert re.fullmatch(r"tilefuse: 2 of 4 outputs are there and complete; they are kept\n", result.stderr)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_old_outputs_are_not_taken_for_new_ones(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    command = ("run", folder, "-o", out, "-m", MODEL, "--tile", 16)
    assert tilefuse(*command).exit_code == 0
    monkeypatch.setattr(Engine, "run_file", interrupt)
    result = tilefuse(*command, "--overwrite")
    assert result.exit_code == 130
    assert "0 of 4 images are done; --resume would keep outputs of an earlier run too" in result.stderr


def test_outputs_that_another_run_made_meanwhile_are_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(engine: Engine, source: Path, output: Path, **options: object) -> None:
        Path(output).write_bytes(b"another run's")
        raise UsageError(f"{output}: already exists")

    out = tmp_path / "out"
    monkeypatch.setattr(Engine, "run_file", taken)
    result = tilefuse("run", folder, "-o", out, "-m", MODEL)
    assert result.exit_code == 2
    words = "4 of 4 images failed; the same command with --resume goes on and keeps what is done\n"
    assert result.stderr.endswith(words), result.stderr
    assert {path.read_bytes() for path in out.iterdir()} == {b"another run's"}


def interrupt(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_an_output_that_another_run_made_meanwhile_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_file = Engine.run_file

    def overtaken(engine: Engine, source: Path, output: Path, **options: object) -> object:
        run_file(engine, source, output, **options)
        return run_file(engine, source, output, **options)

    monkeypatch.setattr(Engine, "run_file", overtaken)
    command = ("run", folder, "-o", out, "-m", MODEL, "--tile", 16)
    result = tilefuse(*command, "--resume")
    assert (result.exit_code, result.output) == (0, "")
    result = tilefuse(*command, "--overwrite")
    assert result.exit_code == 0
    shutil.rmtree(out)
    assert tilefuse(*command).exit_code == 2


def test_a_file_that_is_done_is_not_begun_again(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    command = ("run", folder / "a.png", "-o", output, "-m", MODEL, "--tile", 16, "--resume")
    assert tilefuse(*command).exit_code == 0
    before = output.stat().st_mtime_ns
    result = tilefuse(*command)
    assert (result.exit_code, result.stderr) == (0, "tilefuse: every output is there and complete\n")
    assert output.stat().st_mtime_ns == before
    assert tilefuse(*command, "--overwrite").exit_code == 0
    assert output.stat().st_mtime_ns != before


def test_an_unfinished_run_is_not_overwritten_by_surprise(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    journal = Journal(JobFiles(output).journal)
    journal.start({"tile": "16"})
    journal.close()
    arguments = ("run", folder / "c.npy", "-o", output, "-m", MODEL)
    one_line(tilefuse(*arguments), 2, "go on with --resume")
    one_line(tilefuse(*arguments, "--resume"), 2, "the job is another one", "version was absent")
    assert tilefuse(*arguments, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--range", "5"), ["LO:HI"]),
        (("--range", "5:5"), ["LO:HI"]),
        (("--range", "0:nan"), ["LO:HI"]),
        (("--compression", "lzma"), ["deflate, zstd, none"]),
    ],
)
def test_streaming_options_that_are_none(
    folder: Path, tmp_path: Path, options: tuple[str, str], words: list[str]
) -> None:
    one_line(tilefuse("run", folder / "c.npy", "-o", tmp_path / "out.npy", "-m", MODEL, *options), 2, *words)


def test_ranges_and_bands_from_the_command_line(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.full((20, 20, 6), 500, np.float32))
    options = ("--per-band", "--range", "0:1000")
    result = tilefuse("run", tmp_path / "in.npy", "-o", tmp_path / "out.zarr", "-m", MODEL, *options)
    assert result.exit_code == 0, result.output
    import zarr

    found = np.asarray(zarr.open(str(tmp_path / "out.zarr"), mode="r")[:])
    assert found.shape == (80, 80, 6)
    assert np.abs(found - 500).max() < 30


@pytest.mark.parametrize("suffix", [".tif", ".png", ".npy"])
def test_encoding_is_a_stage_of_its_own(
    folder: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilefuse.storage.tiff_encode.TILE_PX", 16)
    result = tilefuse("run", folder / "c.npy", "-o", tmp_path / f"out{suffix}", "-m", MODEL, "--json", "--tile", 8)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    rows = [event["done"] for event in events if event["event"] == "encode"]
    assert rows == ([16, 32, 48, 64, 80] if suffix == ".tif" else [80])
    assert {event["total"] for event in events if event["event"] == "encode"} == {80}
    assert events[-1]["event"] == "done"


def test_the_bar_of_encoding_comes_and_goes(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "in.npy", tmp_path / "out.tif")
    with Progress(console=Console(file=io.StringIO())) as bars:
        pixels = Pixels.of(bars, [pair])
        pixels.encoded(pair, 30, 80)
        pixels.encoded(pair, 40, 80)
        assert [(task.description, task.completed, task.total) for task in bars.tasks[1:]] == [
            ("encoding out.tif", 40, 80)
        ]
        pixels.ended(pair)
        pixels.ended(pair)
        assert len(bars.tasks) == 1


def test_the_least_memory_that_is_named_suffices(tmp_path: Path) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)).save(source)
    refused = tilefuse("run", source, "-o", tmp_path / "out.png", "-m", MODEL, "--memory", "1KiB")
    assert refused.exit_code == 5
    said = re.search(r"Allow at least ([\d.]+ \w+)", " ".join(refused.output.split()))
    assert said is not None, refused.output
    done = tilefuse("run", source, "-o", tmp_path / "out.png", "-m", MODEL, "--memory", said[1])
    assert done.exit_code == 0, done.output
