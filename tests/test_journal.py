"""Journals: what was recorded is read back, whatever is missing or damaged at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tilefuse.errors import UsageError
from tilefuse.journal import Journal, differences, peek

HEADER = {"input": "a", "tile": "64"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.start(HEADER)
    for index in (0, 7, 2**40):
        journal.window(index, 3 * index % 2**32)
    journal.close()
    return path


def read(path: Path) -> tuple[dict[str, str] | None, dict[int, int], bool]:
    journal = Journal(path)
    try:
        history = journal.history()
        return history.header, dict(history.windows), history.encoded
    finally:
        journal.close()


def test_records_come_back(path: Path) -> None:
    assert read(path) == (HEADER, {0: 0, 7: 21, 2**40: 3 * 2**40 % 2**32}, False)
    assert peek(path) == HEADER
    assert peek(path.with_name("none")) is None


def test_cut_at_any_byte_whole_records_remain(path: Path) -> None:
    data = path.read_bytes()
    seen = set()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        header, windows, _ = read(path)
        assert header in (None, HEADER)
        assert list(windows) == [0, 7, 2**40][: len(windows)]
        assert header is None or path.stat().st_size == len(data) - 17 * (3 - len(windows))
        seen.add((header is None, len(windows)))
    assert seen == {(True, 0), (False, 0), (False, 1), (False, 2), (False, 3)}


def test_a_flipped_bit_anywhere_is_never_believed(path: Path) -> None:
    data = path.read_bytes()
    honest = [(0, 0), (7, 21), (2**40, 3 * 2**40 % 2**32)]
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        header, windows, _ = read(path)
        assert header in (None, HEADER)
        assert list(windows.items()) == honest[: len(windows)]
        assert len(windows) < 3


def test_recording_goes_on_after_a_torn_record(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)
    journal = Journal(path)
    journal.history()
    journal.window(9, 9)
    journal.encoded()
    journal.close()
    assert read(path) == (HEADER, {0: 0, 7: 21, 9: 9}, True)


def test_only_one_at_a_time(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(UsageError, match="another run is writing this result"):
        Journal(path)
    journal.close()
    Journal(path).close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match="symbolic links"):
        Journal(tmp_path / "link")
    assert (tmp_path / "victim").read_text() == "kept"


def test_differences_name_both_values() -> None:
    assert differences(HEADER, {**HEADER, "tile": "32"}) == ["tile was 64, is 32"]
    assert differences(HEADER, {"input": "a"}) == ["tile was 64, is absent"]
    assert differences(HEADER, dict(HEADER)) == []


def test_what_was_encoded_is_so_no_more_once_it_is_encoded_anew(path: Path) -> None:
    for record, expected in ((Journal.encoded, True), (Journal.encoding, False), (Journal.encoded, True)):
        journal = Journal(path)
        journal.history()
        record(journal)
        journal.close()
        assert read(path)[2] is expected
