"""Kill streamed jobs at chosen stages and at random moments, resume them, and compare: run as a module.

One process loads the model and forks a child for each job, which is much quicker than starting anew each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import tilefuse
from tilefuse import streaming_run
from tilefuse.job_files import JobFiles
from tilefuse.storage import tiff_encode

STAGES = {
    "after read": ("RasterPixels", "read", 5, True),
    "mid window": ("PixelRunner", "run", 5, False),
    "between windows": ("PixelCores", "write", 7, True),
    "with rows encoded": ("GatedRaster", "read", 3, True),
    "before the final rename": ("JobFiles", "publish", 1, False),
    "after the final rename": ("JobFiles", "publish", 1, True),
}


def kill_at(owner: str, method: str, call: int, after: bool) -> None:
    """Make this process kill itself before or after the n-th call of a method."""
    holder = getattr(streaming_run, owner)
    original, calls = getattr(holder, method), [0]

    def replaced(*args: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **options)
        if calls[0] == call and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, method, replaced)


def kill_in_encoding() -> None:
    """Make this process kill itself with a part of the result encoded."""
    original = streaming_run.encode

    def replaced(target: streaming_run.Target, suffix: str, output: Path) -> None:
        original(target, suffix, output)
        # An .npy result is a second name of the raster itself: there is no half of it.
        if output.is_file() and output.stat().st_nlink == 1:
            os.truncate(output, output.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    streaming_run.encode = replaced


def in_child(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Run `work` in a child and return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - a child must never return into its parent's code
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digest(path: Path) -> str:
    """Hash a file, or the files of a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def main(folder: Path, suffix: str, trials: int) -> None:
    """Kill jobs at each stage, and `trials` at random moments.

    Prints one JSON line a job: what was done to it, how the two runs ended, whether the result is the same.
    """
    torch.set_num_threads(1)
    # Several rows of tiles in a small result.
    tiff_encode.TILE_PX = 64
    source, output = folder / "in.npy", folder / f"out{suffix}"
    np.save(source, np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8))
    engine = tilefuse.load("espcn-x4", tile=16, backend="torch_eager")
    started = time.perf_counter()
    assert in_child(lambda: engine.run_file(source, output)) == 0
    seconds = time.perf_counter() - started
    expected = digest(output)
    generator = random.Random(0)

    def attempt(name: str, prepare: Callable[[], None], kill_after: float | None) -> bool:
        streaming_run.remove(output)

        def first() -> None:
            prepare()
            engine.run_file(source, output)

        killed = in_child(first, kill_after)
        complete = output.exists()
        windows: list[int] = []

        def resumed() -> None:
            report = engine.run_file(source, output, resume=True)
            (folder / "report").write_text(str(report.windows))

        status = 0 if complete and not JobFiles(output).journal.exists() else in_child(resumed)
        report = folder / "report"
        if report.exists():
            windows.append(int(report.read_text()))
            report.unlink()
        left = sorted(p.name for p in folder.iterdir() if "tilefuse" in p.name)
        same = status == 0 and digest(output) == expected
        print(json.dumps([name, killed, status, same, left, windows]), flush=True)
        return killed == -signal.SIGKILL

    for name, stage in STAGES.items():
        attempt(name, lambda stage=stage: kill_at(*stage), None)
    attempt("during encoding", kill_in_encoding, None)
    # Some jobs are done before their moment comes: the first run, whose time is drawn from, was the slowest.
    died = 0
    for number in range(10 * trials):
        if died < trials:
            died += attempt(f"random {number}", lambda: None, generator.uniform(0, seconds * 1.05))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
