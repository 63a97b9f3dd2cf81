"""Where results go: checks before work starts, and files that appear under their name only when complete."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tilefuse.errors import UsageError
from tilefuse.images.unnamed import give_name, remove_abandoned, temporary_name, unnamed

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP", ".tif": "TIFF", ".tiff": "TIFF"}

# libjpeg's JPEG_MAX_DIMENSION, the 14 bits of a WebP frame's size, PNG's 31 bits; TIFF is held to what NumPy slices.
SIDE_LIMIT_PX = {"JPEG": 65500, "WebP": 16383, "PNG": 2**31 - 1, "TIFF": 2**31 - 1}


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as one printable line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in os.fspath(path))


def output_format(path: str | os.PathLike[str]) -> str:
    """Return the format an output's extension means: PNG, JPEG, WebP or TIFF. Raises UsageError for any other."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        given = f"the extension {shown(suffix)}" if suffix else "no extension"
        raise UsageError(f"{shown(path)}: {given} is no output format; use one of {', '.join(FORMATS)}")
    return FORMATS[suffix]


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False, size: tuple[int, int] | None = None) -> Path:
    """Return `path` if an image of `size` (width, height in pixels) can be written there; call it before any work.

    Raises UsageError when the extension is unknown, the format can't hold the size, the output stands already and
    `overwrite` is false, its name is taken by something that is not a file, or its folder is missing or not writable.
    """
    kind = output_format(path)
    if size is not None and max(size) > SIDE_LIMIT_PX[kind]:
        fitting = [name for name, limit in SIDE_LIMIT_PX.items() if limit >= max(size)]
        raise UsageError(
            f"{shown(path)}: {size[0]} x {size[1]} px is past the {SIDE_LIMIT_PX[kind]} px a side that {kind} can "
            f"hold; use {' or '.join(fitting)}"
        )
    return check_writable(path, overwrite=overwrite)


def check_writable(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Return `path` if a file of any kind can be written there; call it before any work.

    Raises UsageError as `check_output` does.
    """
    _check_free(path, overwrite)
    try:
        probe = temporary_name(Path(os.path.realpath(path)).parent)
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    return Path(path)


def _check_free(path: str | os.PathLike[str], overwrite: bool) -> None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{shown(path)}: stands there and is not a regular file; choose another output name")
    if not overwrite:
        raise UsageError(f"{shown(path)}: already exists; choose another name or allow overwriting (--overwrite)")


def _unwritable(path: str | os.PathLike[str], error: OSError | ValueError) -> UsageError:
    folder = Path(path).parent
    if isinstance(error, FileNotFoundError) and not folder.exists():
        return UsageError(f"{shown(path)}: the folder {shown(folder)} does not exist; create it first")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UsageError(f"{shown(path)}: can't be written ({reason}); choose a folder you may write to, with free space")


@contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Open a file that takes the name `path` only when the block ends without an error.

    The bytes go to a file without a name in the same folder, so that nothing is left of a job that is killed; it is
    flushed to the disk and named. Where a system has no such files, they are held in memory meanwhile. On any error,
    KeyboardInterrupt included, what stood at `path` is untouched.
    Raises UsageError when `path` is taken and `overwrite` is false, or when the system refuses the writing.
    """
    _check_free(path, overwrite)
    # The real path, so that replacing a symbolic link's target keeps the link.
    name = Path(os.path.realpath(path))
    try:
        remove_abandoned(name.parent)
        with unnamed(name.parent) as stream:
            yield stream
            stream.flush()
            _check_free(path, overwrite)
            give_name(stream, name, overwrite=overwrite)
    except OSError as error:
        _check_free(path, overwrite)
        raise _unwritable(path, error) from error
