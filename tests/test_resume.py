"""Killed, stopped, damaged or out of disk: a streamed job goes on and ends byte-identical."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import tilefuse
from tests.conftest import hear_interrupts
from tests.killing import digest
from tilefuse import streaming_run
from tilefuse.errors import CapacityError, DeviceError, ImageError, UsageError
from tilefuse.job_files import JobFiles
from tilefuse.journal import Journal
from tilefuse.storage.registry import Target

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
SHAPE = (60, 70, 3)


class Stop(Exception):
    """Ends a run between two windows."""


@pytest.fixture(scope="module")
def engine() -> tilefuse.Engine:
    return tilefuse.load("espcn-x4", tile=16, backend="torch_eager")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.npy"
    np.save(path, np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8))
    return path


def stop_after(windows: int):
    def progress(done: int, total: int) -> None:
        if done == windows:
            raise Stop

    return progress


def interrupted(engine: tilefuse.Engine, source: Path, output: Path, windows: int = 6) -> int:
    """Stop a run and return how many windows are done; the one that was under way may be among them."""
    with pytest.raises(Stop):
        engine.run_file(source, output, progress=stop_after(windows))
    journal = Journal(JobFiles(output).journal)
    try:
        done = len(journal.history().windows)
    finally:
        journal.close()
    assert windows <= done <= windows + 1
    return done


SLOW = [pytest.param(suffix, marks=pytest.mark.slow) for suffix in (".npy", ".zarr")]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suffix", [".tif", *SLOW])
def test_killed_at_every_stage_and_at_random(tmp_path: Path, suffix: str, request: pytest.FixtureRequest) -> None:
    trials = 30 if request.config.getoption("-m") != "not slow" else 5
    command = [sys.executable, "-m", "tests.killing", tmp_path, suffix, str(trials)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=1500)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    print(done.stdout, done.stderr)
    died = [name for name, killed, *_ in results if name.startswith("random") and killed == -signal.SIGKILL]
    assert len(died) == trials
    for name, killed, status, same, left, _windows in results:
        # Only a TIFF of several rows of tiles is read in several steps.
        spared = name.startswith("random") or (name == "with rows encoded" and suffix != ".tif")
        assert killed == -signal.SIGKILL or spared, name
        assert (status, same, left) == (0, True, []), name
    windows = {name: done for name, *_, done in results}
    # 60x70 in windows of 24: what was done before the kill is not done again.
    total = 4 * 4
    # Killed in the fifth window, while the fourth may still be written.
    assert windows["mid window"] in ([total - 4], [total - 3]), windows
    assert windows["between windows"] == [total - 7]
    # Three rows of tiles were read, which are finished windows.
    assert suffix != ".tif" or windows["with rows encoded"][0] <= 4, windows
    assert windows["during encoding"] == windows["before the final rename"] == windows["after the final rename"] == [0]


def test_what_is_done_is_not_done_again(engine: tilefuse.Engine, source: Path, tmp_path: Path) -> None:
    reference, output = tmp_path / "reference.npy", tmp_path / "out.npy"
    whole = engine.run_file(source, reference)
    done = interrupted(engine, source, output)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out")) == [
        "out.npy.tilefuse-journal",
        "out.npy.tilefuse-part",
    ]
    report = engine.run_file(source, output, resume=True)
    assert (report.resumed, report.windows) == (done, whole.windows - done)
    assert output.read_bytes() == reference.read_bytes()
    assert [p.name for p in tmp_path.iterdir() if "tilefuse" in p.name] == []


def test_the_tile_of_the_first_try_is_kept_whatever_memory_there_is(source: Path, tmp_path: Path) -> None:
    first = tilefuse.load("espcn-x4", backend="torch_eager", memory="9MiB", schedule="windows")
    with pytest.raises(Stop):
        first.run_file(source, tmp_path / "out.npy", progress=stop_after(1))
    later = tilefuse.load("espcn-x4", backend="torch_eager", memory="2GiB")
    assert later.run_file(source, tmp_path / "out.npy", resume=True).resumed in (1, 2)


def test_a_damaged_window_is_computed_again(engine: tilefuse.Engine, source: Path, tmp_path: Path) -> None:
    reference, output = tmp_path / "reference.npy", tmp_path / "out.npy"
    engine.run_file(source, reference)
    done = interrupted(engine, source, output)
    part = JobFiles(output).part
    data = bytearray(part.read_bytes())
    data[500] ^= 1
    part.write_bytes(data)
    assert engine.run_file(source, output, resume=True).resumed == done - 1
    assert output.read_bytes() == reference.read_bytes()


def test_lost_samples_and_a_torn_record_are_computed_again(
    engine: tilefuse.Engine, source: Path, tmp_path: Path
) -> None:
    """A power loss may keep records and lose samples, or keep half a record."""
    reference, output = tmp_path / "reference.npy", tmp_path / "out.npy"
    engine.run_file(source, reference)
    done = interrupted(engine, source, output)
    files = JobFiles(output)
    os.truncate(files.journal, files.journal.stat().st_size - 5)
    assert engine.run_file(source, output, resume=True).resumed == done - 1
    assert output.read_bytes() == reference.read_bytes()
    output.unlink()
    interrupted(engine, source, output)
    os.truncate(files.part, 200)
    assert engine.run_file(source, output, resume=True).resumed == 0
    assert output.read_bytes() == reference.read_bytes()


@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_blocks_that_a_power_loss_made_zeros_are_computed_again(
    engine: tilefuse.Engine, source: Path, tmp_path: Path, suffix: str
) -> None:
    """The records reached the disk, the file's length too, and the last samples did not: the system gives zeros."""
    reference, output = tmp_path / f"reference{suffix}", tmp_path / f"out{suffix}"
    total = engine.run_file(source, reference, resume=True).windows
    done = interrupted(engine, source, output)
    part = JobFiles(output).part
    data = part.read_bytes()
    lost = len(data) // 3
    part.write_bytes(data[:-lost] + bytes(lost))
    report = engine.run_file(source, output, resume=True)
    assert report.resumed < done
    assert report.resumed + report.windows == total
    assert output.read_bytes() == reference.read_bytes()


def test_another_job_is_refused_with_what_differs(engine: tilefuse.Engine, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    interrupted(engine, source, output)
    with pytest.raises(UsageError, match="unfinished run of it is there; go on with --resume"):
        engine.run_file(source, output)
    other = tilefuse.load("espcn-x4", tile=32, backend="torch_eager")
    with pytest.raises(UsageError, match=r"tile was 16, is 32; window was 24x24, is 40x40"):
        other.run_file(source, output, resume=True)
    with pytest.raises(UsageError, match=r"range was own, is 0\.0:9\.0"):
        engine.run_file(source, output, resume=True, value_range=(0, 9))
    np.save(source, np.zeros(SHAPE, np.uint8))
    with pytest.raises(UsageError, match=r"another one: input was [0-9a-f]+, is [0-9a-f]+"):
        engine.run_file(source, output, resume=True)
    assert engine.run_file(source, output, overwrite=True).resumed == 0


def test_two_runs_keep_apart(engine: tilefuse.Engine, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    held = Journal(JobFiles(output).journal)
    with pytest.raises(UsageError, match="another run is writing this result"):
        engine.run_file(source, output, resume=True)
    held.close()
    engine.run_file(source, output, resume=True)


def test_a_name_taken_meanwhile_is_left_alone(engine: tilefuse.Engine, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"

    def take(done: int, total: int) -> None:
        output.write_text("somebody's")

    with pytest.raises(UsageError, match="appeared while the job ran"):
        engine.run_file(source, output, progress=take)
    assert output.read_text() == "somebody's"
    output.unlink()
    assert engine.run_file(source, output, resume=True).windows == 0


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what exFAT and many network and FUSE mounts lack."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("no_links")
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
@pytest.mark.parametrize("place", ["flush_encoded", "encoded", "publish", "_clean"])
def test_a_job_killed_where_files_have_one_name_goes_on(
    engine: tilefuse.Engine, source: Path, tmp_path: Path, place: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each of the last steps: behind the encoder nothing cleans up, so an error leaves what a kill does."""
    reference, output = tmp_path / f"reference{suffix}", tmp_path / f"out{suffix}"
    engine.run_file(source, reference, resume=True)
    owner = {"encoded": Journal, "_clean": streaming_run}.get(place, JobFiles)
    with monkeypatch.context() as patch:
        patch.setattr(owner, place, stop)
        with pytest.raises(Stop):
            engine.run_file(source, output, resume=True)
    report = engine.run_file(source, output, resume=True)
    assert report.windows == 0, "what was done is not done again"
    assert output.read_bytes() == reference.read_bytes()
    assert [p.name for p in tmp_path.iterdir() if "tilefuse" in p.name] == []


@pytest.mark.usefixtures("no_links")
def test_an_encoder_that_fails_where_files_have_one_name_costs_no_window(
    engine: tilefuse.Engine, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = streaming_run.encode

    def fail(target: Target, *arguments: object) -> None:
        encode(target, *arguments)
        raise CapacityError("no space left for the result")

    with monkeypatch.context() as patch:
        patch.setattr(streaming_run, "encode", fail)
        with pytest.raises(CapacityError, match="no space left"):
            engine.run_file(source, tmp_path / "out.npy")
    assert engine.run_file(source, tmp_path / "out.npy", resume=True).windows == 0


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_a_result_has_ordinary_permissions(engine: tilefuse.Engine, source: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "plain").touch()
    engine.run_file(source, tmp_path / f"out{suffix}", resume=True)
    assert (tmp_path / f"out{suffix}").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_full_disk_is_5_and_resumable(source: Path, tmp_path: Path, share: float, engine: tilefuse.Engine) -> None:
    reference, output = tmp_path / "reference.npy", tmp_path / "out.npy"
    engine.run_file(source, reference)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(reference.stat().st_size * share), hard))
    try:
        with pytest.raises(CapacityError, match=r"no space left .* --resume"):
            engine.run_file(source, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not output.exists()
    engine.run_file(source, output, resume=True)
    assert output.read_bytes() == reference.read_bytes()


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg", ".webp", ".zarr", ".dzi"])
def test_a_disk_full_while_encoding_costs_no_window(
    engine: tilefuse.Engine, source: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / f"out{suffix}"
    encode = streaming_run.encode
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(target: Target, *arguments: object) -> None:
        # The limit is the whole process's: the windows are to be finished before.
        target.raster.read(0, target.info.height, 0, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            encode(target, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(streaming_run, "encode", limited)
        with pytest.raises(CapacityError, match=r"no space left .* --resume"):
            engine.run_file(source, output, resume=True)
    assert not output.exists()
    assert engine.run_file(source, output, resume=True).windows == 0
    assert [p.name for p in tmp_path.iterdir() if "tilefuse" in p.name] == []


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_an_encoder_that_fails_ends_the_job_at_once(
    engine: tilefuse.Engine, source: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, output = tmp_path / f"reference{suffix}", tmp_path / f"out{suffix}"
    total = engine.run_file(source, reference, resume=True).windows

    def fail(target: Target, suffix: str, path: Path) -> None:
        path.write_bytes(b"half")
        target.raster.read(0, 40, 0, 1)
        raise CapacityError("no space left for the result")

    with monkeypatch.context() as patch:
        patch.setattr(streaming_run, "encode", fail)
        with pytest.raises(CapacityError, match="no space left"):
            # Progress of a window waits until the encoder has failed, however busy the machine is.
            engine.run_file(source, output, resume=True, progress=lambda done, _: done == 6 and no_encoder())
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out")) == [
        f"out{suffix}.tilefuse-journal",
        f"out{suffix}.tilefuse-part",
    ]
    report = engine.run_file(source, output, resume=True)
    assert 0 < report.windows < total
    assert output.read_bytes() == reference.read_bytes()


def no_encoder() -> None:
    """Wait until no thread encodes."""
    for thread in threading.enumerate():
        if thread.name.endswith("-encode"):
            thread.join(20)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".zarr", ".dzi"])
def test_a_device_that_fails_ends_the_encoder_and_is_6(
    engine: tilefuse.Engine, source: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, output = tmp_path / f"reference{suffix}", tmp_path / f"out{suffix}"
    total = engine.run_file(source, reference, resume=True).windows
    original, calls = streaming_run.PixelRunner.run, []

    def fail(runner: object, tile: object) -> object:
        calls.append(1)
        if len(calls) == 9:
            raise DeviceError("the device is lost")
        return original(runner, tile)

    with monkeypatch.context() as patch:
        patch.setattr(streaming_run.PixelRunner, "run", fail)
        with pytest.raises(DeviceError, match="the device is lost") as raised:
            engine.run_file(source, output)
    assert raised.value.exit_code == 6
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("-encode")]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out")) == [
        f"out{suffix}.tilefuse-journal",
        f"out{suffix}.tilefuse-part",
    ]
    report = engine.run_file(source, output, resume=True)
    assert (report.resumed, report.windows) in [(done, total - done) for done in (7, 8)]
    assert digest(output) == digest(reference)


def test_a_result_encoded_anew_is_not_taken_for_the_complete_one(
    engine: tilefuse.Engine, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete, then damaged, then killed while it is encoded again: the torso must not get the name."""
    reference, output = tmp_path / "reference.tif", tmp_path / "out.tif"
    engine.run_file(source, reference, resume=True)
    files = JobFiles(output)
    with monkeypatch.context() as patch:
        patch.setattr(JobFiles, "publish", stop)
        with pytest.raises(Stop):
            engine.run_file(source, output, resume=True)
    assert files.encoded.read_bytes() == reference.read_bytes()
    part = bytearray(files.part.read_bytes())
    part[-1] ^= 1
    files.part.write_bytes(part)
    with monkeypatch.context() as patch:
        patch.setattr(JobFiles, "flush_encoded", stop)
        with pytest.raises(Stop):
            engine.run_file(source, output, resume=True)
    files.encoded.write_bytes(b"torso")
    assert engine.run_file(source, output, resume=True).windows == 0
    assert output.read_bytes() == reference.read_bytes()


def stop(*arguments: object, **options: object) -> None:
    raise Stop


def test_a_disk_too_small_is_refused_before_the_work(
    engine: tilefuse.Engine, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(CapacityError, match=r"needs about 1\.2 MiB of disk and 1000 B are free"):
        engine.run_file(source, tmp_path / "out.npy")


def test_a_damaged_tile_keeps_what_was_done(engine: tilefuse.Engine, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    source, output = tmp_path / "in.tif", tmp_path / "out.npy"
    tifffile.imwrite(source, pixels, tile=(32, 32), compression="zlib", photometric="rgb")
    good = source.read_bytes()
    with tifffile.TiffFile(source) as file:
        offset = file.pages[0].dataoffsets[7]
    source.write_bytes(good[: offset + 9] + b"\xff" * 40 + good[offset + 49 :])
    with pytest.raises(ImageError, match=r"in\.tif: tile 7 \(row 2, column 1\) is damaged"):
        engine.run_file(source, output)
    assert JobFiles(output).journal.exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_within_two_seconds_and_the_job_goes_on(tmp_path: Path, sent: int, code: int) -> None:
    source, output = tmp_path / "in.npy", tmp_path / "out.npy"
    np.save(source, np.zeros((1200, 1200, 3), np.uint8))
    command = [sys.executable, "-c", "from tilefuse.cli import main; main()", "run", source, "-o", output]
    command += ["-m", "espcn-x4", "--json", "--tile", "64", "--backend", "torch_eager"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=hear_interrupts, **pipes) as running:
        while '"progress"' not in running.stdout.readline():
            assert running.poll() is None
        sent_at = time.monotonic()
        running.send_signal(sent)
        running.stdout.read()
        assert running.wait() == code
        seconds = time.monotonic() - sent_at
        told = running.stderr.read()
    assert told.endswith(f"; what is done of {output} is kept: the same command with --resume goes on\n")
    assert "Traceback" not in told
    print(f"stopped in {seconds:.2f} s")
    assert seconds < 2
    assert not output.exists()
    resumed = tilefuse.load("espcn-x4", tile=64, backend="torch_eager")
    with pytest.raises(Stop):
        resumed.run_file(source, output, resume=True, progress=stop_after(1 + _recorded(output)))


def _recorded(output: Path) -> int:
    journal = Journal(JobFiles(output).journal)
    try:
        return len(journal.history().windows)
    finally:
        journal.close()
