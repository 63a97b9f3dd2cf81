"""Files that have no name until they are complete, and the removal of those that a killed process left half named."""

from __future__ import annotations

import fcntl
import io
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from tilefuse.naming import rename_new

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SUFFIX = ".part"
# Younger files may belong to a process that is about to lock them.
_SETTLED_SECONDS = 60


def unnamed(folder: Path) -> BinaryIO:
    """Open a file without a name in a folder; in memory where the system, or that of the disk, has none."""
    try:
        # Libraries ask for the name of what they write to.
        return open(str(folder / "unnamed"), "w+b", opener=lambda *_: os.open(folder, os.O_RDWR | os.O_TMPFILE, 0o666))
    except (AttributeError, OSError):
        return io.BytesIO()


def give_name(stream: BinaryIO, name: Path, *, overwrite: bool) -> None:
    """Make a file of `unnamed` durable under its name.

    A free name is linked to the file at once. Where links are refused, or to take the place of another file, it goes
    through a temporary name, which a kill may leave; `remove_abandoned` knows it by the lock that it then lost.

    Raises:
        FileExistsError: the name is taken, and not to be.
    """
    if not isinstance(stream, io.BytesIO):
        os.fsync(stream.fileno())
        try:
            if _linked(stream, name):
                return
        except FileExistsError:
            if not overwrite:
                raise
    with _temporarily_named(stream, name.parent) as temporary:
        if overwrite:
            os.replace(temporary, name)
        else:
            rename_new(temporary, name)


@contextmanager
def _temporarily_named(stream: BinaryIO, folder: Path) -> Iterator[Path]:
    """Name a file, or a copy where it can't be linked; it is locked while it has that name."""
    temporary = temporary_name(folder)
    try:
        if not isinstance(stream, io.BytesIO):
            _lock(stream)
            if _linked(stream, temporary):
                yield temporary
                return
        with open(temporary, "xb") as copy:
            _lock(copy)
            stream.seek(0)
            while piece := stream.read(1 << 20):
                copy.write(piece)
            copy.flush()
            os.fsync(copy.fileno())
            yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


def _lock(stream: BinaryIO) -> None:
    # Without locks nothing is ever removed as abandoned.
    with suppress(OSError):
        fcntl.flock(stream, fcntl.LOCK_EX)


def _linked(stream: BinaryIO, name: Path) -> bool:
    """Give an unnamed file a name that is free; false where the file system refuses links, or /proc is not there."""
    # The call that follows the link in /proc to the file is chosen by giving the folder that it starts from.
    link, folder = f"/proc/self/fd/{stream.fileno()}", os.open(name.parent, os.O_RDONLY)
    try:
        os.link(link, name, src_dir_fd=folder, follow_symlinks=True)
    except FileExistsError:
        raise
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def temporary_name(folder: Path) -> Path:
    """Return a free name, short so that it always fits, that tells since which start of the system it is there."""
    return folder / f"{_prefix()}{secrets.token_hex(6)}{_SUFFIX}"


@cache
def _prefix() -> str:
    try:
        started = sha256(_BOOT_ID.read_bytes()).hexdigest()[:8]
    except OSError:
        # Nobody else's, so that no other process takes them for abandoned.
        started = secrets.token_hex(4)
    return f".tilefuse-{started}-"


@lru_cache(maxsize=64)
def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left in a folder under temporary names; once a process and folder.

    That is this user's files which this running system named more than a minute ago, and which nobody holds a lock on
    any more. Another machine's locks may be invisible here, so its files stay, as do those from before a restart.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_prefix()) and entry.name.endswith(_SUFFIX):
                with suppress(OSError):
                    _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held, named = os.fstat(descriptor), os.stat(path, follow_symlinks=False)
        same = (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)
        if same and held.st_uid == os.geteuid() and time.time() - held.st_mtime > _SETTLED_SECONDS:
            os.unlink(path)
    finally:
        os.close(descriptor)
