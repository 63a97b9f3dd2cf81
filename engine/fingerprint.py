"""What an input is, in a few bytes: so that a job is never resumed with another image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

_PIECE_BYTES = 1 << 20
_WHOLE_BYTES = 1 << 30
_SAMPLES = 64


def fingerprint(path: Path, cancelled: Callable[[], bool]) -> str:
    """Return a BLAKE2b digest of a file, or of the files of a directory.

    Files up to 1 GiB are read whole. Larger ones, and directories, are told by size and time of change, and larger
    files by 64 evenly spread pieces of 1 MiB as well.
    """
    digest = hashlib.blake2b(digest_size=16)
    if path.is_dir():
        for file in sorted(found for found in path.rglob("*") if found.is_file()):
            state = file.stat()
            digest.update(f"{file.relative_to(path)} {state.st_size} {state.st_mtime_ns}\n".encode(errors="replace"))
        return digest.hexdigest()
    size = path.stat().st_size
    with open(path, "rb") as stream:
        if size <= _WHOLE_BYTES:
            while (piece := stream.read(_PIECE_BYTES)) and not cancelled():
                digest.update(piece)
        else:
            digest.update(f"{size} {os.fstat(stream.fileno()).st_mtime_ns}".encode())
            for number in range(_SAMPLES):
                stream.seek(number * (size - _PIECE_BYTES) // (_SAMPLES - 1))
                digest.update(stream.read(_PIECE_BYTES))
    return digest.hexdigest()
