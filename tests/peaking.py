"""Run a job and print what it took, as a module in a process of its own: only then is its memory its own."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from pathlib import Path

import numpy as np

import tilefuse
from tilefuse.execute import execute
from tilefuse.interruptible import run_interruptibly
from tilefuse.journal import Journal
from tilefuse.machine import release_memory
from tilefuse.runners import FloatRunner
from tilefuse.storage import open_raster
from tilefuse.storage.base import RasterInfo
from tilefuse.storage.encoding_memory import encoder_bytes
from tilefuse.storage.flat import FlatRaster
from tilefuse.storage.registry import Target, encode
from tilefuse.streamed_budget import planned_windows
from tilefuse.streamed_cores import FinishedWindows, RasterCores
from tilefuse.streamed_job import StreamJob
from tilefuse.streamed_windows import RasterWindows, split_bands


def resident(key: str = "VmRSS") -> int:
    """Resident bytes of this process now, or at its highest (VmHWM)."""
    return int(re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) * 1024


def reset_peak() -> int:
    """Forget the highest resident size so far and return the present one."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def loaded(memory: str) -> tilefuse.Engine:
    """Load a model and every library that a job touches, so that growth is the job's own."""
    import pyvips  # noqa: F401
    import tifffile  # noqa: F401
    import zarr  # noqa: F401

    # Measuring backends may start processes, and is not the job whose memory is told.
    engine = tilefuse.load("espcn-x4", memory=memory, measure_seconds=0)
    engine(np.zeros((24, 24, 3), np.uint8))
    return engine


def job(source: str, output: str, memory: str, compression: str) -> None:
    """Run a file under a budget and print peak growth, times and windows."""
    engine = loaded(memory)
    # Every child that ended has left page faults here; those of a library's import are not the job's.
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    before, cpu, started = reset_peak(), time.process_time(), time.perf_counter()
    report = engine.run_file(source, output, overwrite=True, compression=compression)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt == children, "the process tree is this process"
    print(
        json.dumps(
            {
                "growth_bytes": resident("VmHWM") - before,
                "seconds": time.perf_counter() - started,
                "cpu_seconds": time.process_time() - cpu,
                "compute_seconds": report.compute_seconds,
                "windows": report.windows,
                "tile": report.plan.tile,
                "estimated_bytes": report.plan.peak_bytes,
            }
        )
    )


def gigapixels(source: str, folder: str, memory: str, count: int) -> None:
    """Plan a huge image, run its first and its last windows, and print the growth of both."""
    engine = loaded(memory)
    started = time.process_time()
    reader = open_raster(Path(source), Path(folder), 1 << 24)
    planes = split_bands(reader.info, engine.model.image_channels, per_band=False)
    job = StreamJob(Path(source), Path(folder) / "out.npy")
    _, cut = planned_windows(engine.model, job, reader.info, planes, engine.request(), engine.serving)
    planned = time.process_time() - started
    growth = []
    journal = Journal(Path(folder) / "journal")
    journal.start({})
    with open(Path(folder) / "part", "w+b") as part:
        raster = FlatRaster(part.fileno(), 0, (*cut.output, 1), reader.info.dtype)
        runner = FloatRunner(engine.session(engine.serving, 1, cut.window), one_by_one=True)
        windows = RasterWindows(reader, reader.info, planes)
        for first in (0, len(cut) - count):
            cores = RasterCores(FinishedWindows(raster, journal, cut), reader, reader.info, planes)
            before = reset_peak()
            chosen = range(first, first + count)
            run_interruptibly(
                lambda _, cores=cores, chosen=chosen: execute(cut, runner, windows, cores, windows=chosen)
            )
            growth.append(resident("VmHWM") - before)
    print(json.dumps({"planned_seconds": planned, "windows": len(cut), "growth_bytes": growth}))


class Ramp:
    """A raster of 6800 x 1100 px that is made as it is read."""

    shape = (1100, 6800, 3)

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype

    def read(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        block = np.empty((y1 - y0, x1 - x0, 3), self.dtype)
        block[...] = (np.arange(x0, x1) * 7 % 251).astype(self.dtype)[:, None]
        block += (np.arange(y0, y1) % 37).astype(self.dtype)[:, None, None]
        return block


def encoders(folder: str) -> None:
    """Encode a raster in every format and print, of each, the growth and what is kept back for it."""
    import pyvips  # noqa: F401
    import tifffile  # noqa: F401
    import zarr  # noqa: F401

    growth = {}
    for number, (suffix, kind) in enumerate(
        [
            (".tif", "uint8"),
            (".tif", "float32"),
            (".zarr", "uint8"),
            (".png", "uint8"),
            (".jpg", "uint8"),
            (".dzi", "uint8"),
        ]
    ):
        raster = Ramp(np.dtype(kind))
        output = Path(folder) / f"{number}{suffix}"
        info = RasterInfo(*raster.shape, raster.dtype)
        release_memory()
        before = reset_peak()
        encode(Target(output, raster, info, "deflate", lambda: False), suffix, output)
        growth[f"{suffix} {kind}"] = (
            resident("VmHWM") - before,
            encoder_bytes(suffix, raster.shape, raster.dtype.itemsize),
        )
    print(json.dumps(growth))


def rows(memory: str) -> None:
    """Run an image that is held in memory by the row schedule and print the growth and the estimate."""
    engine = tilefuse.load("compact-x4", schedule="rows", memory=memory)
    engine(np.zeros((48, 48, 3), np.uint8))
    image = np.random.default_rng(0).integers(0, 256, (400, 1000, 3), np.uint8)
    estimated = engine.plan(400, 1000).peak_bytes
    release_memory()
    before = reset_peak()
    engine(image)
    print(json.dumps({"growth_bytes": resident("VmHWM") - before, "estimated_bytes": estimated}))


if __name__ == "__main__":
    if sys.argv[1] == "job":
        job(*sys.argv[2:6])
    elif sys.argv[1] == "rows":
        rows(sys.argv[2])
    elif sys.argv[1] == "encoders":
        encoders(sys.argv[2])
    else:
        gigapixels(*sys.argv[2:5], int(sys.argv[5]))
