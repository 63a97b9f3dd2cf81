"""Whole jobs on a GPU: what it gains to copy beside computing, and whether a budget of its memory holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.gpu_clock import Clock, CudaClock, HostClock
from benchmarks.gpu_record import Row
from benchmarks.gpu_steps import NO_TIME, Outcome, Step
from tilefuse.backends.pixels import LANES, Integers
from tilefuse.backends.triton_fused import TritonFused
from tilefuse.capture import from_module
from tilefuse.compiling import SessionKey, session_cache
from tilefuse.execute import Runner, execute
from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.footprint import footprint
from tilefuse.memory import PixelReader, PixelWriter
from tilefuse.model import Model
from tilefuse.planner import Request, Serving, plan
from tilefuse.runners import PixelRunner
from tilefuse.shrinking import ShrinkingRunner
from tilefuse.tiling import Grid, grid

CALLERS = (1, LANES)
STEP_S = 60.0


@dataclass(frozen=True)
class Job:
    """A picture through a network in windows: `tile` to time callers with, `memory` bytes to hold a budget to."""

    name: str
    build: Callable[[], nn.Module]
    size: tuple[int, int]
    tile: int
    memory: int
    rounds: int


# The one copies more than it computes, the other computes more than it copies.
JOBS = (
    Job("ESPCN x4 3840x2160", lambda: ESPCN(4), (2160, 3840), 512, 512 << 20, 5),
    Job("Compact 64x16 x4 1920x1080", SRVGGNetCompact, (1080, 1920), 256, 512 << 20, 5),
)
TINY = (Job("ESPCN tiny", lambda: ESPCN(2, features=(4, 4)), (8, 40), 16, 70 << 10, 1),)


def overlap(dry: bool, index: int) -> Row:
    """Time a whole job with one caller and with two, in turns, and compare their pixels.

    `mp_s` are a million input pixels a second, the median of the rounds, reading and writing in memory included.
    """
    job, model = _jobs(dry)[index], _model(dry, index)
    cut = grid(*job.size, job.tile, model.geometry())
    shape = (1, 3, *cut.window)
    session = TritonFused().compile_pixels(
        model, shape, np.dtype(np.uint8), device=_device(dry), precision="fp16", threads=1
    )
    image = _image(job)
    # The first round compiles what converts at the ends, and opens the lanes.
    results = {callers: _run(cut, PixelRunner(session), image, callers)[0] for callers in CALLERS}
    seconds: dict[int, list[float]] = {callers: [] for callers in CALLERS}
    equal = np.array_equal(*results.values())
    for _ in range(job.rounds):
        for callers in CALLERS:
            made, taken = _run(cut, PixelRunner(session), image, callers)
            seconds[callers].append(taken)
            equal = equal and np.array_equal(made, results[1])
    mp_s = [job.size[0] * job.size[1] / median(seconds[callers]) / 1e6 for callers in CALLERS]
    return {**_check(f"one and two callers, {job.name}", equal), "windows": len(cut), "mp_s": mp_s}


def budget(dry: bool, index: int) -> Row:
    """Run a job within a budget of device memory, and compare its pixels with those of the whole image at once."""
    job, model = _jobs(dry)[index], _model(dry, index)
    serving = Serving("triton_fused", _device(dry), "fp16", ("as asked",), workers=LANES, threads=1)
    made, cut = plan(model, (1, *job.size), 0, Request(memory=job.memory), serving)
    sessions = session_cache(model, serving.device, lambda: job.memory)

    def compiled(window: tuple[int, int]) -> Runner[Integers]:
        key = SessionKey("triton_fused", 1, window, "fp16", 1, "uint8")
        return PixelRunner(sessions.get(key))  # type: ignore[arg-type]

    image, results = _image(job), list[NDArray[np.uint8]]()
    runner = ShrinkingRunner(compiled, cut.window, model.geometry(), device=serving.device)
    clock: Clock = HostClock() if dry else CudaClock()
    growth = clock.peak_bytes(lambda: results.append(_run(cut, runner, image, made.workers)[0]))
    whole = grid(*job.size, 0, model.geometry())
    (expected, _), notes = _run(whole, compiled(whole.window), image, 1), runner.notes
    passed = growth <= job.memory and not notes
    row = _check(f"budget of {job.memory >> 20} MiB, {job.name}", np.array_equal(results[0], expected), passed=passed)
    return {
        **row, "windows": len(cut), "budget_bytes": job.memory, "planned_bytes": made.peak_bytes,
        "growth_bytes": growth, "notes": list(notes),
    }  # fmt: skip


STEPS = (overlap, budget)


def steps(dry: bool) -> list[Step]:
    """List the jobs to run, alone on the device."""
    jobs = [(function, i) for function in STEPS for i in range(len(_jobs(dry)))]
    return [Step(f"{function.__name__} {_jobs(dry)[i].name}", function, (dry, i), STEP_S) for function, i in jobs]


def take(record: Row, step: Step, outcome: Outcome) -> None:
    """Enter a job among the record's checks; one that failed is red, one that there was no time for is noted."""
    if outcome.error == NO_TIME:
        record["notes"].append(f"{step.name}: not run, {NO_TIME}")
        return
    row = outcome.result or {**_check(step.name, False), "error": outcome.error}
    record["checks"].append(row)
    print(f"{row['kernel']}: {row}", flush=True)


def _run(cut: Grid, runner: Runner[Integers], image: Integers, callers: int) -> tuple[NDArray[np.uint8], float]:
    result = np.zeros((1, *cut.output, 3), np.uint8)
    begun = time.perf_counter()
    execute(cut, runner, PixelReader(image), PixelWriter(result), workers=callers)
    return result, time.perf_counter() - begun


def _check(name: str, equal: bool, *, passed: bool = True) -> Row:
    """Give a row of the record's checks; its type spoils no network's, whose kernels have checks of their own."""
    row = {"kernel": name, "dtype": "uint8", "max_error": None, "rms_error": None, "tiled_equal": equal}
    return {**row, "passed": equal and passed}


def _jobs(dry: bool) -> tuple[Job, ...]:
    return TINY if dry else JOBS


def _device(dry: bool) -> str:
    return "cpu" if dry else "cuda"


def _model(dry: bool, index: int) -> Model:
    job = _jobs(dry)[index]
    torch.manual_seed(0)
    with torch.no_grad():
        graph = from_module(job.build().eval(), torch.rand(1, 3, 32, 32))
    return Model(job.name, job.name, graph, footprint=footprint(graph), image_channels=(3, 3))


def _image(job: Job) -> Integers:
    return np.random.default_rng(0).integers(0, 256, (1, *job.size, 3), np.uint8)
