"""Windows that go on when memory runs out: the same window again, in smaller ones cut out of it.

A window is to its parts what an image is to its windows, so the result is the same, and what was finished before
stays finished. Parts as small as the first that fitted are kept for the windows after it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.errors import CapacityError
from tilefuse.execute import Runner
from tilefuse.footprint import Footprint
from tilefuse.machine import format_bytes, free_memory, release_after
from tilefuse.tiling import Grid, grid

MOST_SHRINKS = 4

Tile = TypeVar("Tile")


class ShrinkingRunner(Generic[Tile]):
    """Runs windows of one shape, in parts of half the edge after each time that memory ran out.

    `make` compiles for a window shape and `forget` gives up what was compiled for one. `halo_px` replaces the exact
    halo; `device` is whose memory runs out. Safe to use from several threads at once.
    """

    def __init__(
        self,
        make: Callable[[tuple[int, int]], Runner[Tile]],
        window: tuple[int, int],
        footprint: Footprint,
        halo_px: int | None = None,
        forget: Callable[[tuple[int, int]], None] = lambda _: None,
        device: str = "cpu",
    ) -> None:
        self._make = make
        self._window = window
        self._footprint = footprint
        self._halo_px = halo_px
        self._forget = forget
        self._device = device
        self._lock = threading.Condition()
        self._running: Counter[int] = Counter()
        self._shrinks = 0
        self._failed: list[tuple[int, int]] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """Say which windows memory ran out in, if it did."""
        if not self._failed:
            return ()
        return (f"memory ran out in windows of {_listed(self._failed)}: smaller ones were run in their place",)

    def run(self, tile: Tile) -> tuple[Tile, bool]:
        """Run a window.

        Raises:
            CapacityError: memory ran out in the smallest parts too.
        """
        while True:
            with self._lock:
                shrinks = self._shrinks
                self._running[shrinks] += 1
            try:
                return self._run_parts(tile, shrinks)
            except MemoryError as error:
                failed = error
            finally:
                with self._lock:
                    self._running[shrinks] -= 1
                    self._lock.notify_all()
            self._shrink(shrinks, failed)
            # It keeps this frame, which keeps it.
            del failed

    def crop(self, result: Tile, rows: slice, columns: slice) -> Tile:
        """Cut a piece out of a window or of its result."""
        cut: Tile = _crop(result, rows, columns)
        return cut

    def _shrink(self, shrinks: int, error: MemoryError) -> None:
        """Go on with smaller parts, unless another thread has said so already; those that run larger ones end first."""
        with self._lock:
            if self._shrinks == shrinks:
                shape = self._cut(shrinks).window
                self._failed.append(shape)
                # A deep halo leaves a window as it is for a step or two.
                further = range(shrinks + 1, MOST_SHRINKS + 1)
                smaller = next((count for count in further if self._cut(count).window != shape), None)
                self._forget(shape)
                if smaller is None:
                    release_after(error)
                    raise CapacityError(self._refusal(error)) from error
                self._shrinks = smaller
            self._lock.wait_for(lambda: not any(self._running[count] for count in range(self._shrinks)))
        release_after(error)

    def _refusal(self, error: MemoryError) -> str:
        reach = self._footprint.global_ops
        why = f"; it can't be cut smaller: {reach[0]} sees all of it" if reach and self._halo_px is None else ""
        where = "in this machine" if self._device == "cpu" else f"on {self._device}"
        return (
            f"memory ran out in windows of {_listed(self._failed)}, with {format_bytes(free_memory(self._device))} "
            f"free {where} ({error}){why}. Allow less with memory=, take a smaller tile, or free some memory"
        )

    def _cut(self, shrinks: int) -> Grid:
        height, width = self._window
        # An op that sees all of a window sees less in its parts, and would give another result.
        whole = shrinks == 0 or (bool(self._footprint.global_ops) and self._halo_px is None)
        tile = 0 if whole else max(1, max(self._window) >> shrinks)
        return grid(height, width, tile, self._footprint, self._halo_px)

    def _run_parts(self, tile: Tile, shrinks: int) -> tuple[Tile, bool]:
        cut = self._cut(shrinks)
        runner = self._make(cut.window)
        if len(cut) == 1:
            return runner.run(tile)
        whole: Tile | None = None
        all_finite = True
        for index in range(len(cut)):
            y, x = cut[index].y, cut[index].x
            result, finite = runner.run(runner.crop(tile, slice(y.start, y.stop), slice(x.start, x.stop)))
            if whole is None:
                whole = _blank(result, cut.output)
            rows, columns = slice(y.core_start, y.core_stop), slice(x.core_start, x.core_stop)
            own_rows = slice(y.crop, y.crop + y.core_stop - y.core_start)
            own_columns = slice(x.crop, x.crop + x.core_stop - x.core_start)
            _crop(whole, rows, columns)[...] = runner.crop(result, own_rows, own_columns)
            all_finite = all_finite and finite
        return cast(Tile, whole), all_finite


def _crop(tile: object, rows: slice, columns: slice) -> Any:
    """Cut float tensors [N, C, H, W] or integer arrays [N, H, W, C]; a view."""
    if isinstance(tile, Tensor):
        return tile[:, :, rows, columns]
    return cast(NDArray[Any], tile)[:, rows, columns]


def _blank(piece: object, size: tuple[int, int]) -> Any:
    """Make room for a result of which a piece is known."""
    if isinstance(piece, Tensor):
        return piece.new_empty((*piece.shape[:2], *size))
    array = cast(NDArray[Any], piece)
    return np.empty((array.shape[0], *size, array.shape[3]), array.dtype)


def _listed(shapes: list[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for height, width in shapes)
