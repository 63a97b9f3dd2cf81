"""Run a plan: read a window, run it, check it, write its core; reading and writing overlap the computing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tilefuse.errors import CapacityError, DeviceError
from tilefuse.interruptible import THREAD_NAME
from tilefuse.tiling import Grid, Window

Progress = Callable[[int, int], None]
Tile = TypeVar("Tile")
Made = TypeVar("Made", covariant=True)
Taken = TypeVar("Taken", contravariant=True)


class WindowReader(Protocol[Made]):
    """Gives windows of an image; positions past the real image (alignment, minimum size) are the reader's to fill."""

    def read(self, window: Window) -> Made:
        """Return the window as its runner takes it."""
        ...


class WindowWriter(Protocol[Taken]):
    """Takes finished cores, in any order."""

    def write(self, window: Window, core: Taken) -> None:
        """Store a core, as its runner gives it, at the window's core position."""
        ...


class Runner(Protocol[Tile]):
    """A compiled network and the form its windows have."""

    def run(self, tile: Tile) -> tuple[Tile, bool]:
        """Run a window; false when finite values gave some that are not."""
        ...

    def crop(self, result: Tile, rows: slice, columns: slice) -> Tile:
        """Cut the core out of a window's result."""
        ...


@dataclass(frozen=True)
class Execution:
    """What a run did. `compute_seconds` is time inside the backend; `rerun_fp32` counts windows computed again.

    `notes` say what the user should know of it.
    """

    windows: int
    seconds: float
    compute_seconds: float
    rerun_fp32: int
    notes: tuple[str, ...] = ()


def execute(
    grid: Grid,
    runner: Runner[Tile],
    reader: WindowReader[Tile],
    writer: WindowWriter[Tile],
    *,
    exact: Callable[[], Runner[Tile]] | None = None,
    progress: Progress | None = None,
    windows: Sequence[int] | None = None,
    workers: int = 1,
) -> Execution:
    """Run every window of `grid`, or those that `windows` lists, on `workers` threads.

    `exact` gives an fp32 runner for windows whose reduced-precision result is not finite; None when `runner` is fp32
    already. `progress(done, total)` is called after each window. Only one thread at a time reads, and one writes.

    Raises:
        DeviceError: the backend failed, or gave a non-finite value in fp32 for a finite input.
        CapacityError: memory ran out.
    """
    started = time.perf_counter()
    chosen = range(len(grid)) if windows is None else windows
    workers = max(1, min(workers, len(chosen)))
    job = _Job(grid, runner, exact, reader, writer)
    tally = _Tally(len(chosen), progress)
    if workers == 1:
        _run_ahead(job, chosen, tally)
    else:
        _run_together(job, chosen, workers, tally)
    seconds = time.perf_counter() - started
    return Execution(len(chosen), seconds, tally.compute_seconds / workers, tally.rerun_fp32)


@dataclass(frozen=True)
class _Computed(Generic[Tile]):
    """The core of a window, the seconds it took, and whether it was computed again in fp32."""

    window: Window
    core: Tile
    seconds: float
    again: bool


class _Job(Generic[Tile]):
    """The steps of one window. Readers and writers serve one thread at a time; runners serve all."""

    def __init__(
        self,
        grid: Grid,
        runner: Runner[Tile],
        exact: Callable[[], Runner[Tile]] | None,
        reader: WindowReader[Tile],
        writer: WindowWriter[Tile],
    ) -> None:
        self._grid = grid
        self._runner = runner
        self._exact = exact
        self._reader = reader
        self._writer = writer
        self._reading, self._writing = threading.Lock(), threading.Lock()

    def read(self, index: int) -> Tile:
        with self._reading:
            return self._reader.read(self._grid[index])

    def write(self, done: _Computed[Tile]) -> _Computed[Tile]:
        with self._writing:
            self._writer.write(done.window, done.core)
        return done

    def compute(self, index: int, tile: Tile) -> _Computed[Tile]:
        begin = time.perf_counter()
        window = self._grid[index]
        result, finite = self._run(self._runner, tile)
        again = not finite and self._exact is not None
        if self._exact is not None and not finite:
            result, finite = self._run(self._exact(), tile)
        if not finite:
            raise DeviceError(
                f"window {index} of {len(self._grid)} at y {window.y.start}, x {window.x.start} gave values that are "
                "not finite in fp32: the weights overflow on this image. No result is written"
            )
        y, x = window.y, window.x
        rows = slice(y.crop, y.crop + y.core_stop - y.core_start)
        columns = slice(x.crop, x.crop + x.core_stop - x.core_start)
        core = self._runner.crop(result, rows, columns)
        return _Computed(window, core, time.perf_counter() - begin, again)

    def _run(self, runner: Runner[Tile], tile: Tile) -> tuple[Tile, bool]:
        try:
            return runner.run(tile)
        except MemoryError as error:
            height, width = self._grid.window
            raise CapacityError(
                f"memory ran out in a window of {width}x{height}; allow less with memory= or a smaller tile"
            ) from error


class _Tally:
    """Adds up what was done and tells of progress; several threads add to it."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.compute_seconds = 0.0
        self.rerun_fp32 = 0
        self._done, self._total = 0, total
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, done: _Computed[Any]) -> None:
        with self._lock:
            self.compute_seconds += done.seconds
            self.rerun_fp32 += done.again
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)


def _run_ahead(job: _Job[Tile], chosen: Sequence[int], tally: _Tally) -> None:
    """Compute in this thread alone, while another reads the next window and a third writes the one before.

    OpenMP keeps a team of threads for each thread that computes, and idle teams spin: two would be slower than one.
    """
    if len(chosen) < 2:
        for index in chosen:
            tally.add(job.write(job.compute(index, job.read(index))))
        return
    names = f"{THREAD_NAME}-read", f"{THREAD_NAME}-write"
    with ThreadPoolExecutor(1, names[0]) as reading, ThreadPoolExecutor(1, names[1]) as writing:
        ahead = [reading.submit(job.read, index) for index in chosen[:1]]
        written: list[Future[_Computed[Tile]]] = []
        for position, index in enumerate(chosen):
            tile = ahead.pop().result()
            ahead += [reading.submit(job.read, following) for following in chosen[position + 1 : position + 2]]
            computed = job.compute(index, tile)
            if written:
                tally.add(written.pop().result())
            written.append(writing.submit(job.write, computed))
        for last in written:
            tally.add(last.result())


def _run_together(job: _Job[Tile], chosen: Sequence[int], workers: int, tally: _Tally) -> None:
    """Compute in several threads, each of which reads and writes its own windows."""
    waiting, lock, errors = iter(chosen), threading.Lock(), list[BaseException]()

    def work() -> None:
        while True:
            with lock:
                index = None if errors else next(waiting, None)
            if index is None:
                return
            try:
                tally.add(job.write(job.compute(index, job.read(index))))
            except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
                errors.append(error)

    threads = [threading.Thread(target=work, name=f"{THREAD_NAME}-{n}", daemon=True) for n in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:
        # An interrupt. It goes on once the workers, which still hold the files, have ended their windows.
        errors.append(error)
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]
