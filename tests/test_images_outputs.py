"""Outputs: refused before the work when they can't be written, complete or absent afterwards."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from pathlib import Path

import pytest

from tilefuse.errors import ImageError, UsageError
from tilefuse.images import read_image, unnamed
from tilefuse.images.outputs import check_output, output_format, replacing


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "PNG"),
        ("a.JPG", "JPEG"),
        ("a.b.jpeg", "JPEG"),
        ("a.webp", "WebP"),
        ("a.tif", "TIFF"),
        ("a.TIFF", "TIFF"),
    ],
)
def test_the_extension_names_the_format(name: str, kind: str) -> None:
    assert output_format(name) == kind


@pytest.mark.parametrize("name", ["a", "a.", ".png", "a.gif", "a.png.bak", "a.exr"])
def test_other_extensions_are_refused_with_the_list(name: str) -> None:
    with pytest.raises(UsageError, match=r"use one of \.png, \.jpg, \.jpeg, \.webp, \.tif, \.tiff"):
        output_format(name)


def test_a_free_name_is_returned_and_nothing_is_left_behind(tmp_path: Path) -> None:
    assert check_output(tmp_path / "a.png", size=(10, 10)) == tmp_path / "a.png"
    assert os.listdir(tmp_path) == []


def test_an_existing_output_needs_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="already exists"):
        check_output(path)
    with pytest.raises(UsageError, match="already exists"), replacing(path):
        pass
    check_output(path, overwrite=True)
    assert path.read_bytes() == b"precious"


def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.png"

    def write() -> None:
        with replacing(path) as stream:
            stream.write(b"new")
            path.write_bytes(b"precious")

    with pytest.raises(UsageError, match="already exists"):
        write()
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["a.png"]


def test_places_that_cannot_hold_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo.png")
    for path, said in (
        (tmp_path / "folder.png", "not a regular file"),
        (tmp_path / "fifo.png", "not a regular file"),
        (tmp_path / "missing" / "a.png", "does not exist; create it first"),
        (tmp_path / "file" / "a.png", "Not a directory"),
        (Path("/proc/a.png"), "proc"),
        (tmp_path / ("a" * 300 + ".png"), "File name too long"),
        (tmp_path / "nul\0.png", "can't be written"),
    ):
        with pytest.raises(UsageError, match=said) as raised:
            check_output(path, overwrite=True)
        assert str(raised.value).isprintable()
        with pytest.raises(UsageError), replacing(path, overwrite=True):
            pass


def test_a_read_only_folder(ordinary_folder: Path) -> None:
    check_output(ordinary_folder / "a.png")
    ordinary_folder.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        check_output(ordinary_folder / "a.png")


def test_an_image_without_permission_is_refused(ordinary_folder: Path) -> None:
    path = ordinary_folder / "a.png"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "side", "fits"),
    [("a.jpg", 65500, True), ("a.jpg", 65501, False), ("a.webp", 16383, True), ("a.webp", 16384, False),
     ("a.png", 100_000, True), ("a.tif", 100_000, True)],
)  # fmt: skip
def test_side_limits_name_the_limit_and_what_holds_more(tmp_path: Path, name: str, side: int, fits: bool) -> None:
    for size in ((side, 1), (1, side)):
        if fits:
            check_output(tmp_path / name, size=size)
            continue
        with pytest.raises(UsageError, match=rf"past the {side - 1} px a side that .* can hold; use .*PNG or TIFF"):
            check_output(tmp_path / name, size=size)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_nothing_is_left_after_a_failure(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with replacing(tmp_path / "a.png") as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == []


@pytest.fixture(params=["unnamed", "in memory"])
def kind_of_file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in memory":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no files without a name")


@pytest.mark.usefixtures("kind_of_file")
def test_the_name_appears_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with replacing(path) as stream:
        stream.write(b"whole")
        stream.flush()
        assert os.listdir(tmp_path) == [], "it would be left there by a job that is killed"
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.fixture(params=[True, False], ids=["unnamed", "in memory"])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take hard links away, as exFAT and many network and FUSE mounts do, and files without a name as well."""
    opened = os.open

    def refusing(path: str, flags: int, *rest: int, **options: int) -> int:
        if hasattr(os, "O_TMPFILE") and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return opened(path, flags, *rest, **options)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    if not request.param:
        monkeypatch.setattr(os, "open", refusing)


@pytest.mark.usefixtures("no_links")
def test_a_folder_where_files_have_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with replacing(path) as stream:
        stream.write(b"whole")
    assert path.read_bytes() == b"whole"
    with replacing(path, overwrite=True) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.usefixtures("no_links")
def test_what_appears_in_the_last_moment_stays_where_files_have_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    renamed = unnamed.rename_new

    def meanwhile(source: Path, name: Path) -> None:
        name.write_bytes(b"precious")
        renamed(source, name)

    monkeypatch.setattr(unnamed, "rename_new", meanwhile)
    with pytest.raises(UsageError, match="already exists"), replacing(path) as stream:
        stream.write(b"new")
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["a.png"]


def killed_before_the_rename(folder: Path) -> None:
    """Overwrite a file in a process that dies with the new one under its temporary name."""
    (folder / "a.png").write_bytes(b"old")
    child = os.fork()
    if child == 0:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        with replacing(folder / "a.png", overwrite=True) as stream:
            stream.write(b"new")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    killed_before_the_rename(tmp_path)
    (left,) = set(os.listdir(tmp_path)) - {"a.png"}
    os.utime(tmp_path / left, (0, 0))
    (tmp_path / ".tilefuse-00000000-000000000000.part").write_bytes(b"another machine's")
    (tmp_path / f"{left[:-5]}.png").write_bytes(b"somebody's")
    with replacing(tmp_path / "b.png") as stream:
        stream.write(b"b")
    assert sorted(os.listdir(tmp_path)) == sorted(
        [".tilefuse-00000000-000000000000.part", f"{left[:-5]}.png", "a.png", "b.png"]
    )


@pytest.mark.usefixtures("kind_of_file")
def test_what_another_is_about_to_rename_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = os.replace
    (tmp_path / "a.png").write_bytes(b"old")

    def beside_another(source: Path, name: Path) -> None:
        os.utime(source, (0, 0))
        unnamed.remove_abandoned.__wrapped__(tmp_path)
        replaced(source, name)

    monkeypatch.setattr(os, "replace", beside_another)
    with replacing(tmp_path / "a.png", overwrite=True) as stream:
        stream.write(b"whole")
    assert (tmp_path / "a.png").read_bytes() == b"whole"


def test_nothing_is_left_of_a_kill_where_the_name_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is linked to its own name at once: there is no moment with another."""
    linked, names = os.link, []
    monkeypatch.setattr(os, "link", lambda source, name, **where: (names.append(name), linked(source, name, **where)))
    with replacing(tmp_path / "a.png") as stream:
        stream.write(b"whole")
    assert names in ([tmp_path / "a.png"], [])


def test_a_link_to_another_file_system_is_followed(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev or not os.access(memory, os.W_OK):
        pytest.skip("no other file system here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        (tmp_path / "a.png").symlink_to(Path(folder) / "a.png")
        with replacing(tmp_path / "a.png") as stream:
            stream.write(b"new")
        assert (Path(folder) / "a.png").read_bytes() == b"new"
        assert (tmp_path / "a.png").is_symlink()


def test_a_link_s_target_is_replaced_and_the_link_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "a.png", tmp_path / "a.png"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with replacing(link, overwrite=True) as stream:
        stream.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.usefixtures("kind_of_file")
def test_the_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "a.png") as stream:
        stream.write(b"x")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode
