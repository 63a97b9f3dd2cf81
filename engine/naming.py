"""Names for finished files: taken in one step, and never from a file that came meanwhile."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

# Linux: renameat2(2).
_RENAME_NOREPLACE, _AT_FDCWD = 1, -100
_UNKNOWN = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def rename_new(source: Path, name: Path) -> None:
    """Give a file or a folder a name that must be free.

    A hard link and an exclusive rename ask the file system, where it has one of them; FAT, exFAT and many network and
    FUSE mounts have no links, and some no such rename. There a file that comes in the last microseconds is replaced.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(source, name)
    except FileExistsError:
        raise
    # Every other refusal, whose numbers differ between file systems, is left to the rename to explain.
    except OSError:
        if _rename_exclusively(source, name):
            return
        if os.path.lexists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from None
        os.rename(source, name)
    else:
        os.unlink(source)


def _rename_exclusively(source: Path, name: Path) -> bool:
    """Rename unless the name is taken; false where the system or the file system can't promise that."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(name), _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(name))


def flush_folder(folder: Path) -> None:
    """Make names in a folder durable, where its file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
