"""Run a plan: read a window, run it, check it, write its core."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tilefuse.backends.base import Session
from tilefuse.errors import CapacityError, DeviceError
from tilefuse.tiling import Grid, Window

Progress = Callable[[int, int], None]


class WindowReader(Protocol):
    """Gives windows of an image; positions past the real image (alignment, minimum size) are the reader's to fill."""

    def read(self, window: Window) -> Tensor:
        """Return the window as float32 [N, C, H, W] in the network's value range."""
        ...


class WindowWriter(Protocol):
    """Takes finished cores, in any order."""

    def write(self, window: Window, core: Tensor) -> None:
        """Store float32 [N, C, H, W] at the window's core position."""
        ...


@dataclass(frozen=True)
class Execution:
    """What a run did. `compute_seconds` is time inside the backend; `rerun_fp32` counts windows computed again."""

    windows: int
    seconds: float
    compute_seconds: float
    rerun_fp32: int


def execute(
    grid: Grid,
    session: Session,
    reader: WindowReader,
    writer: WindowWriter,
    *,
    exact_session: Callable[[], Session] | None = None,
    progress: Progress | None = None,
    windows: Sequence[int] | None = None,
) -> Execution:
    """Run every window of `grid`, or those that `windows` lists.

    `exact_session` gives an fp32 session for windows whose reduced-precision result is not finite; None when `session`
    is fp32 already. `progress(done, total)` is called after each window.

    Raises:
        DeviceError: the backend failed, or gave a non-finite value in fp32 for a finite input.
        CapacityError: memory ran out.
    """
    started = time.perf_counter()
    compute, reruns = 0.0, 0
    chosen = range(len(grid)) if windows is None else windows
    for done, index in enumerate(chosen, 1):
        window = grid[index]
        tile = reader.read(window)
        begin = time.perf_counter()
        result = _run(session, tile, grid)
        if exact_session is not None and _overflowed(result, tile):
            result, reruns = _run(exact_session(), tile, grid), reruns + 1
        if _overflowed(result, tile):
            raise DeviceError(
                f"window {index} of {len(grid)} at y {window.y.start}, x {window.x.start} gave values that are not "
                "finite in fp32: the weights overflow on this image. No result is written"
            )
        compute += time.perf_counter() - begin
        y, x = window.y, window.x
        rows = slice(y.crop, y.crop + y.core_stop - y.core_start)
        columns = slice(x.crop, x.crop + x.core_stop - x.core_start)
        writer.write(window, result[:, :, rows, columns])
        if progress is not None:
            progress(done, len(chosen))
    return Execution(len(chosen), time.perf_counter() - started, compute, reruns)


def _run(session: Session, tile: Tensor, grid: Grid) -> Tensor:
    try:
        return session.run(tile)[0]
    except MemoryError as error:
        shape = f"{grid.window[1]}x{grid.window[0]}"
        raise CapacityError(
            f"memory ran out in a window of {shape}; allow less with memory= or a smaller tile"
        ) from error


def _overflowed(result: Tensor, tile: Tensor) -> bool:
    """Tell whether the network made a non-finite value out of finite ones."""
    return not bool(torch.isfinite(result).all()) and bool(torch.isfinite(tile).all())
