"""Run a plan: read a window, run it, check it, write its core; reading and writing overlap the computing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tilefuse.batching import Batch
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
    batch: Batch[Tile] | None = None,
) -> Execution:
    """Run every window of `grid`, or those that `windows` lists, on `workers` threads.

    With `batch`, several windows go into one call; `runner` takes them one by one where that can't be. `exact` gives an
    fp32 runner for windows whose reduced-precision result is not finite; None when `runner` is fp32 already.
    `progress(done, total)` is called after each window. Only one thread at a time reads, and one writes.

    Raises:
        DeviceError: the backend failed, or gave a non-finite value in fp32 for a finite input.
        CapacityError: memory ran out.
    """
    started = time.perf_counter()
    chosen = range(len(grid)) if windows is None else windows
    job = _Job(grid, runner, exact, reader, writer, batch)
    groups = _Groups(chosen, 1 if batch is None else batch.size)
    workers = max(1, min(workers, len(groups)))
    tally = _Tally(len(chosen), progress)
    if workers == 1:
        _run_ahead(job, groups, tally)
    else:
        _run_together(job, groups, workers, tally)
    seconds = time.perf_counter() - started
    return Execution(len(chosen), seconds, tally.compute_seconds / workers, tally.rerun_fp32)


@dataclass(frozen=True)
class _Computed(Generic[Tile]):
    """The core of a window, the seconds it took, and whether it was computed again in fp32."""

    window: Window
    core: Tile
    seconds: float
    again: bool


class _Groups:
    """Windows by as many as go into one call, cut as they are asked for: there may be millions."""

    def __init__(self, chosen: Sequence[int], size: int) -> None:
        self._chosen = chosen
        self._size = size

    def __len__(self) -> int:
        return -(-len(self._chosen) // self._size)

    def __getitem__(self, place: int) -> Sequence[int]:
        return self._chosen[place * self._size : (place + 1) * self._size]


class _Job(Generic[Tile]):
    """The steps of a group of windows. Readers and writers serve one thread at a time; runners serve all."""

    def __init__(
        self,
        grid: Grid,
        runner: Runner[Tile],
        exact: Callable[[], Runner[Tile]] | None,
        reader: WindowReader[Tile],
        writer: WindowWriter[Tile],
        batch: Batch[Tile] | None,
    ) -> None:
        self._grid = grid
        self._runner = runner
        self._exact = exact
        self._reader = reader
        self._writer = writer
        self._batch = batch
        self._reading, self._writing = threading.Lock(), threading.Lock()

    def read(self, group: Sequence[int]) -> list[Tile]:
        with self._reading:
            return [self._reader.read(self._grid[index]) for index in group]

    def write(self, done: list[_Computed[Tile]]) -> list[_Computed[Tile]]:
        with self._writing:
            for each in done:
                self._writer.write(each.window, each.core)
        return done

    def compute(self, group: Sequence[int], tiles: list[Tile]) -> list[_Computed[Tile]]:
        begin = time.perf_counter()
        together = self._batch.run(tiles) if self._batch is not None and len(group) > 1 else None
        if together is None:
            return [self._alone(index, tile) for index, tile in zip(group, tiles, strict=True)]
        cores = [(self._grid[index], self._core(index, result)) for index, result in zip(group, together, strict=True)]
        seconds = (time.perf_counter() - begin) / len(group)
        return [_Computed(window, core, seconds, again=False) for window, core in cores]

    def _alone(self, index: int, tile: Tile) -> _Computed[Tile]:
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
        core = self._core(index, result)
        return _Computed(window, core, time.perf_counter() - begin, again)

    def _core(self, index: int, result: Tile) -> Tile:
        y, x = self._grid[index].y, self._grid[index].x
        rows = slice(y.crop, y.crop + y.core_stop - y.core_start)
        columns = slice(x.crop, x.crop + x.core_stop - x.core_start)
        return self._runner.crop(result, rows, columns)

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

    def add(self, done: Sequence[_Computed[Any]]) -> None:
        for each in done:
            with self._lock:
                self.compute_seconds += each.seconds
                self.rerun_fp32 += each.again
                self._done += 1
                if self._progress is not None:
                    self._progress(self._done, self._total)


def _run_ahead(job: _Job[Tile], groups: _Groups, tally: _Tally) -> None:
    """Compute in this thread alone, while another reads the next windows and a third writes those before.

    OpenMP keeps a team of threads for each thread that computes, and idle teams spin: two would be slower than one.
    """
    if len(groups) < 2:
        for place in range(len(groups)):
            tally.add(job.write(job.compute(groups[place], job.read(groups[place]))))
        return
    names = f"{THREAD_NAME}-read", f"{THREAD_NAME}-write"
    with ThreadPoolExecutor(1, names[0]) as reading, ThreadPoolExecutor(1, names[1]) as writing:
        ahead = reading.submit(job.read, groups[0])
        written: list[Future[list[_Computed[Tile]]]] = []
        for place in range(len(groups)):
            tiles = ahead.result()
            if place + 1 < len(groups):
                ahead = reading.submit(job.read, groups[place + 1])
            computed = job.compute(groups[place], tiles)
            if written:
                tally.add(written.pop().result())
            written.append(writing.submit(job.write, computed))
        for last in written:
            tally.add(last.result())


def _run_together(job: _Job[Tile], groups: _Groups, workers: int, tally: _Tally) -> None:
    """Compute in several threads, each of which reads and writes its own windows."""
    waiting, lock, errors = iter(range(len(groups))), threading.Lock(), list[BaseException]()

    def work() -> None:
        while True:
            with lock:
                place = None if errors else next(waiting, None)
            if place is None:
                return
            try:
                tally.add(job.write(job.compute(groups[place], job.read(groups[place]))))
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
