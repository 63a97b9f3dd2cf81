"""Rows that are read while the ones below are made: never early, and never waited for in vain."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tilefuse.errors import CapacityError
from tilefuse.storage.flat import FlatRaster
from tilefuse.storage.gate import GatedRaster, RowGate
from tilefuse.storage.tiff_encode import CancelledError
from tilefuse.streamed_encoding import beside
from tilefuse.tiling import Grid, Span

ROWS = (Span(0, 9, 0, 4, 0), Span(4, 13, 4, 8, 0), Span(8, 17, 8, 11, 0))
COLUMNS = (Span(0, 9, 0, 5, 0), Span(5, 14, 5, 10, 0))
GRID = Grid(11, 10, (11, 10), (9, 9), (11, 10), ROWS, COLUMNS)


def never() -> bool:
    return False


def test_rows_count_from_the_top_in_any_order_of_windows() -> None:
    gate = RowGate(GRID, {0, 4}, never)
    seen = [gate.rows]
    for index in (5, 3, 1, 2):
        gate.finished(index)
        seen.append(gate.rows)
    assert seen == [0, 0, 0, 4, 11]


def test_a_read_waits_for_its_last_row_and_gives_what_was_written(tmp_path: Path) -> None:
    gate, tops = RowGate(GRID, (), never), list[int]()
    with open(tmp_path / "raster", "w+b") as file:
        raster = FlatRaster(file.fileno(), 0, (11, 10, 1), np.dtype(np.uint8))
        gated = GatedRaster(raster, gate, tops.append)
        blocks: list[np.ndarray] = []
        reading = threading.Thread(target=lambda: blocks.extend(gated.read(y, y + 4, 0, 10) for y in (0, 4, 0)))
        reading.start()
        for index in range(4):
            reading.join(0.02)
            assert len(blocks) == index // 2, "read before its rows were there"
            y, x = GRID[index].y, GRID[index].x
            size = (y.core_stop - y.core_start, x.core_stop - x.core_start, 1)
            raster.write(y.core_start, x.core_start, np.full(size, index + 1, np.uint8))
            gate.finished(index)
            reading.join(0.2 if index % 2 else 0)
        reading.join()
    assert [block[0, [0, 9], 0].tolist() for block in blocks] == [[1, 2], [3, 4], [1, 2]]
    assert tops == [4]


@pytest.mark.parametrize("how", ["closed", "cancelled"])
def test_who_waits_is_woken_when_no_more_rows_come(how: str) -> None:
    stop = threading.Event()
    gate = RowGate(GRID, {0, 1}, stop.is_set)
    gate.wait(4)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            gate.wait(5)
        except CancelledError as error:
            ended.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    if how == "closed":
        gate.close()
    else:
        stop.set()
    waiting.join(10)
    assert len(ended) == 1
    with pytest.raises(CancelledError):
        gate.wait(4)


def test_an_error_of_the_block_ends_the_encoder_and_goes_on() -> None:
    gate = RowGate(GRID, (), never)
    with pytest.raises(KeyError, match="mine"), beside(lambda: gate.wait(1), gate):
        raise KeyError("mine")
    assert not encoding()


def test_an_error_of_the_encoder_is_told_to_the_block() -> None:
    gate, met = RowGate(GRID, (), never), threading.Event()

    def encode() -> None:
        met.set()
        raise CapacityError("full")

    def block(check: Callable[[], None]) -> None:
        met.wait(10)
        for _ in range(1000):
            check()
            met.clear()
            met.wait(0.01)
        raise AssertionError("the block was not told")

    with pytest.raises(CapacityError, match="full"), beside(encode, gate) as check:
        block(check)
    with pytest.raises(CapacityError, match="full"), beside(encode, gate):
        pass
    assert not encoding()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux")
@pytest.mark.parametrize("forbidden", [False, True])
def test_the_encoder_steps_back_where_it_may(forbidden: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    if forbidden:
        monkeypatch.setattr(os, "setpriority", refuse)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[int] = []
    with beside(lambda: seen.append(os.getpriority(os.PRIO_PROCESS, 0)), RowGate(GRID, (), never)):
        pass
    assert seen == [before if forbidden else min(19, before + 5)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def encoding() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("-encode")]
