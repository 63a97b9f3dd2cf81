"""The journal of a long job: which windows of the unfinished result are done, surviving a kill at any moment.

Layout: magic, length and CRC-32 of a JSON header; then records of 17 bytes, each with a CRC-32 of its own. Records are
only ever appended. A record whose checksum fails ends what is believed: a write was torn there.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tilefuse.errors import UsageError
from tilefuse.images.outputs import shown
from tilefuse.naming import flush_folder
from tilefuse.storage.flat import disk_errors

_MAGIC = b"tilefuse journal 1\n"
_PREFIX = struct.Struct("<II")
_BODY = struct.Struct("<BQI")
_RECORD_BYTES = _BODY.size + 4
_WINDOW, _ENCODED, _ENCODING = 1, 2, 3
_MAX_HEADER_BYTES = 1 << 20

Header = Mapping[str, str]


@dataclass(frozen=True)
class History:
    """What a journal says: its header (None when there is none), the CRC-32 of each finished window, and whether the
    encoded result was complete.
    """

    header: dict[str, str] | None
    windows: Mapping[int, int]
    encoded: bool


class Journal:
    """An open journal. While it is open no other process can open it."""

    def __init__(self, path: Path) -> None:
        """Open or make the file and lock it. Raises UsageError when another run holds it."""
        self._path = path
        with disk_errors("the journal"):
            self._descriptor = _locked(path)

    def history(self) -> History:
        """Read everything and cut off a torn end, so that what is appended next follows the last whole record."""
        size = os.fstat(self._descriptor).st_size
        data = os.pread(self._descriptor, size, 0)
        header, start = _parse_header(data)
        if header is None:
            return History(None, {}, False)
        windows: dict[int, int] = {}
        encoded = False
        end = start
        while end + _RECORD_BYTES <= len(data):
            body = data[end : end + _BODY.size]
            if zlib.crc32(body) != int.from_bytes(data[end + _BODY.size : end + _RECORD_BYTES], "little"):
                break
            kind, index, checksum = _BODY.unpack(body)
            if kind == _WINDOW:
                windows[index] = checksum
            encoded = kind == _ENCODED if kind in (_ENCODED, _ENCODING) else encoded
            end += _RECORD_BYTES
        os.ftruncate(self._descriptor, end)
        return History(header, windows, encoded)

    def start(self, header: Header) -> None:
        """Begin anew with `header`, durable when this returns."""
        data = json.dumps(dict(header), sort_keys=True).encode()
        with disk_errors("the journal"):
            os.ftruncate(self._descriptor, 0)
            self._append(_MAGIC + _PREFIX.pack(len(data), zlib.crc32(data)) + data)
            self.sync()
            flush_folder(self._path.parent)

    def window(self, index: int, checksum: int) -> None:
        """Record a finished window; its samples must have been handed to the system before."""
        self._record(_WINDOW, index, checksum)

    def encoding(self) -> None:
        """Record that the result is encoded anew: one that was complete is so no more."""
        self._record(_ENCODING, 0, 0)
        self.sync()

    def encoded(self) -> None:
        """Record that the encoded result is complete and on the disk."""
        self._record(_ENCODED, 0, 0)
        self.sync()

    def sync(self) -> None:
        """Make what was recorded durable."""
        with disk_errors("the journal"):
            os.fsync(self._descriptor)

    def remove(self) -> None:
        """Delete the file; the job is done."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unlock and close."""
        os.close(self._descriptor)

    def _record(self, kind: int, index: int, checksum: int) -> None:
        body = _BODY.pack(kind, index, checksum)
        with disk_errors("the journal"):
            self._append(body + zlib.crc32(body).to_bytes(4, "little"))

    def _append(self, data: bytes) -> None:
        # A short write leaves a torn record, which reading cuts off.
        if os.write(self._descriptor, data) < len(data):
            raise OSError(28, os.strerror(28))


def differences(recorded: Header, wanted: Header) -> list[str]:
    """Name what differs between two headers, with both values."""
    names = sorted({*recorded, *wanted})
    return [
        f"{name} was {recorded.get(name, 'absent')}, is {wanted.get(name, 'absent')}"
        for name in names
        if recorded.get(name) != wanted.get(name)
    ]


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(f"{shown(path)}: another run is writing this result; wait for it or stop it") from error
        # The run that held the lock may have finished and removed the file just now.
        try:
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _parse_header(data: bytes) -> tuple[dict[str, str] | None, int]:
    start = len(_MAGIC) + _PREFIX.size
    if not data.startswith(_MAGIC) or len(data) < start:
        return None, 0
    length, checksum = _PREFIX.unpack_from(data, len(_MAGIC))
    text = data[start : start + length]
    if length > _MAX_HEADER_BYTES or len(text) < length or zlib.crc32(text) != checksum:
        return None, 0
    return json.loads(text), start + length


def peek(path: Path) -> dict[str, str] | None:
    """Return the header of a journal without locking it; None when there is none that can be believed."""
    try:
        with open(path, "rb") as stream:
            return _parse_header(stream.read(_MAX_HEADER_BYTES))[0]
    except FileNotFoundError:
        return None
