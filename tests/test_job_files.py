"""A finished job takes its name on any file system: with hard links, with exclusive renames, with neither."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tilefuse import naming
from tilefuse.errors import UsageError
from tilefuse.job_files import JobFiles

REFUSALS = [errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.ENOSYS]


@pytest.fixture(params=["links", "renames", "neither"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take hard links away (exFAT, many network and FUSE mounts), and exclusive renames too (older kernels)."""
    if request.param != "links":
        refuse_links(monkeypatch, errno.EPERM)
    if request.param == "neither":
        monkeypatch.setattr(naming, "_rename_exclusively", lambda *_: False)
    return str(request.param)


def refuse_links(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)


def encoded(folder: Path, name: str) -> JobFiles:
    """Lay out what a job has encoded: a file, a folder of files, or a pyramid and its tiles."""
    files = JobFiles(folder / name)
    target = files.target()
    if target.suffix == ".zarr" or name.endswith(".zarr"):
        target.mkdir()
        (target / "c").write_bytes(b"whole")
        return files
    target.write_bytes(b"whole")
    if name.endswith(".dzi"):
        (target.parent / "out_files").mkdir()
        (target.parent / "out_files" / "0.png").write_bytes(b"tile")
    return files


@pytest.mark.usefixtures("file_system")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["out.tif", "out.zarr", "out.dzi"])
def test_the_result_takes_its_name(tmp_path: Path, name: str, overwrite: bool) -> None:
    files = encoded(tmp_path, name)
    if overwrite:
        (tmp_path / name).write_bytes(b"old") if name != "out.zarr" else (tmp_path / name / "old").mkdir(parents=True)
    files.publish(overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == ([name, "out_files"] if name == "out.dzi" else [name])
    assert (tmp_path / name / "c" if name == "out.zarr" else tmp_path / name).read_bytes() == b"whole"
    assert files.published()


@pytest.mark.usefixtures("file_system")
@pytest.mark.parametrize("name", ["out.tif", "out.zarr", "out.dzi"])
def test_what_came_meanwhile_stays(tmp_path: Path, name: str) -> None:
    files = encoded(tmp_path, name)
    files.output.write_bytes(b"precious")
    with pytest.raises(UsageError, match="appeared while the job ran; move it, then --resume"):
        files.publish(overwrite=False)
    assert files.output.read_bytes() == b"precious"
    assert not files.published()
    files.output.unlink()
    files.publish(overwrite=False)
    assert files.published()


@pytest.mark.parametrize("code", REFUSALS)
def test_every_refusal_of_a_link_is_taken_for_one(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_links(monkeypatch, code)
    encoded(tmp_path, "out.tif").publish(overwrite=False)
    assert os.listdir(tmp_path) == ["out.tif"]


def test_an_exclusive_rename_asks_the_system(tmp_path: Path) -> None:
    """Or the file that stands there would be lost between looking and renaming."""
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"precious")
    if not naming._rename_exclusively(tmp_path / "a", tmp_path / "c"):
        pytest.skip("this system has no such rename")
    (tmp_path / "c").rename(tmp_path / "a")
    with pytest.raises(FileExistsError):
        naming._rename_exclusively(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"precious"
    with pytest.raises(FileNotFoundError):
        naming._rename_exclusively(tmp_path / "missing", tmp_path / "d")


def test_a_folder_that_can_t_be_flushed_loses_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = os.fsync

    def refusing(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        flushed(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    encoded(tmp_path, "out.tif").publish(overwrite=False)
    assert os.listdir(tmp_path) == ["out.tif"]


def test_the_raster_that_became_the_result_is_gone_on_with(tmp_path: Path) -> None:
    files = JobFiles(tmp_path / "out.npy")
    files.part.write_bytes(b"windows")
    os.rename(files.part, files.encoded)
    files.take_back()
    assert files.part.read_bytes() == b"windows"
    assert not files.encoded.exists()
    os.link(files.part, files.encoded)
    files.take_back()
    assert files.part.read_bytes() == b"windows"
    assert not files.encoded.exists()


def test_half_an_encoded_file_is_no_raster(tmp_path: Path) -> None:
    files = encoded(tmp_path, "out.tif")
    files.take_back()
    assert os.listdir(tmp_path) == []
