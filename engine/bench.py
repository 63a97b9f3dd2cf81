"""Measure a model on this machine: every backend and the default choice, interleaved, beside the machine's ceilings."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tilefuse.api import Engine, load
from tilefuse.backends import registry
from tilefuse.backends.base import Precision
from tilefuse.candidates import allowed_backends
from tilefuse.cost import flops
from tilefuse.errors import BackendError, CapacityError, DeviceError, UsageError
from tilefuse.machine import cpu_name, cpu_threads
from tilefuse.model import Model
from tilefuse.options import MEASURE_SECONDS, checked_seconds
from tilefuse.planner import input_shapes
from tilefuse.quality import max_levels, psnr
from tilefuse.resident import peak_growth
from tilefuse.roofline import Ceiling, measure_ceiling, traffic_bytes
from tilefuse.sample import sample_picture
from tilefuse.timing import Timing, interleave, timed

Source = str | os.PathLike[str] | nn.Module
DEFAULT = "default"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
# Images a latent model draws in one call.
DRAWN = 16
# A backend this many times slower than the fastest is not timed again: its first rounds tell enough.
DROP_FACTOR = 4.0


@dataclass(frozen=True)
class Work:
    """What one call computes: pixels in and out, arithmetic, and the traffic of the graph; None where unknown."""

    images: int
    input_px: int
    output_px: int
    flops: int | None
    bytes: int | None


@dataclass(frozen=True)
class Row:
    """One backend at one size. Rates are of the median call on 8-bit images, conversions and tiling included.

    `name` is `default` for the engine's own choice. `compile_s` is what the first call took beyond the median;
    `peak_bytes` the growth of the process while it ran, or of torch's memory on a GPU. `psnr_db` is against fp32
    torch, None where the results are equal; `max_levels` the largest difference in levels of 8 bits. `refused` is the
    reason it can't serve, and then nothing else is there.
    """

    name: str
    backend: str
    precision: str
    size: str
    refused: str | None = None
    windows: int | None = None
    timing: Timing | None = None
    compile_s: float | None = None
    images_per_s: float | None = None
    input_mps: float | None = None
    output_mps: float | None = None
    gflops: float | None = None
    gbs: float | None = None
    matmul_share: float | None = None
    copy_share: float | None = None
    peak_bytes: int | None = None
    psnr_db: float | None = None
    max_levels: float | None = None


@dataclass(frozen=True)
class Bench:
    """What was measured, and on what."""

    model: str
    machine: str
    rounds: int
    ceilings: tuple[Ceiling, ...]
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """Give everything as plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Trial:
    """A row with the engine and the 8-bit result behind it; both None where the backend can't serve."""

    row: Row
    engine: Engine | None = None
    result: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class _Subject:
    name: str
    engine: Engine
    call: Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class _First:
    """The first call of a subject."""

    seconds: float
    peak_bytes: int | None
    result: NDArray[np.uint8]


def bench(
    source: Source,
    *,
    sizes: Sequence[tuple[int, int]] = ((960, 540),),
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32",),
    rounds: int = 7,
    measure_seconds: float = MEASURE_SECONDS,
) -> Bench:
    """Measure `source` at each size (width, height), on each backend in each precision, and as `load` would serve it.

    The engine's own choice is measured anew, within `measure_seconds`, and recorded. A latent model draws a batch of 16
    instead, whatever the sizes.

    Raises:
        ModelError: the model can't be loaded.
        UsageError: a backend or precision has no such name, or the time is none.
    """
    names, wanted = checked_names(backends, precisions)
    checked_seconds(measure_seconds)
    engine = load(source)
    model, ceilings = engine.model, measure_ceilings(wanted, engine.serving.device)
    images = [None] if model.footprint is None else [_sample(model, size) for size in sizes]
    rows = [
        trial.row
        for image in images
        for trial in run_trials(source, image, names, wanted, rounds, measure_seconds, ceilings=ceilings)
    ]
    return Bench(model.name, machine_name(), rounds, tuple(ceilings.values()), tuple(rows))


def checked_names(
    backends: Sequence[str] | None, precisions: Sequence[str]
) -> tuple[tuple[str, ...], tuple[Precision, ...]]:
    """Return the names of backends (all that TILEFUSE_BACKENDS allows when None) and of precisions.

    Raises:
        UsageError: there is no such name, or none at all.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UsageError(f"precision: {precision!r} is none; give some of {', '.join(PRECISIONS)}")
    names = allowed_backends("auto") if backends is None else [registry.get(name).name for name in backends]
    if not names:
        raise UsageError(f"backends: none is named; give some of {', '.join(registry.BACKENDS)}")
    if not precisions:
        raise UsageError(f"precision: none is named; give some of {', '.join(PRECISIONS)}")
    return tuple(dict.fromkeys(names)), cast(tuple[Precision, ...], tuple(dict.fromkeys(precisions)))


def measure_ceilings(precisions: Sequence[Precision], device: str = "cpu") -> dict[Precision, Ceiling]:
    """Measure the ceilings of fp32 and of every precision named."""
    # As the torch backend does when it compiles: a ceiling of fewer threads would be none.
    torch.set_num_threads(cpu_threads())
    return {precision: measure_ceiling(precision, device) for precision in dict.fromkeys([*precisions, "fp32"])}


def machine_name() -> str:
    """Name what the figures depend on: processor, threads, torch and Python."""
    return f"{cpu_name()}, {cpu_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def work_of(model: Model, image: NDArray[np.uint8] | None) -> Work:
    """Count what one call computes on an image [H, W] or [H, W, C], or on a batch of latents when it is None.

    Both counts are of the whole image as one window: what tiling computes twice is not work done.
    """
    graph = model.graph
    if image is None:
        if graph is None:
            return Work(DRAWN, 0, 0, None, None)
        shapes = graph.shapes(*input_shapes(graph, DRAWN, (0, 0)))
        drawn = shapes[graph.outputs[0]]
        return Work(DRAWN, 0, DRAWN * drawn[-2] * drawn[-1], flops(graph, shapes), traffic_bytes(graph, shapes))
    height, width = image.shape[:2]
    found = model.geometry()
    out_h, out_w = found.output_size(height, width)
    if graph is None:
        return Work(1, width * height, out_w * out_h, None, None)
    images = 3 if model.image_channels[0] == 1 and image.ndim == 3 and image.shape[2] >= 3 else 1
    padded = found.y.padded(height, found.minimum_px), found.x.padded(width, found.minimum_px)
    shapes = graph.shapes(*input_shapes(graph, images, padded))
    return Work(1, width * height, out_w * out_h, flops(graph, shapes), traffic_bytes(graph, shapes))


def run_trials(
    source: Source,
    image: NDArray[np.uint8] | None,
    backends: Sequence[str],
    precisions: Sequence[Precision],
    rounds: int,
    measure_seconds: float,
    *,
    ceilings: Mapping[Precision, Ceiling],
) -> list[Trial]:
    """Run the default engine and each backend in each precision on an image, or on a batch of latents when it is None.

    The default chooses by measuring first, for `measure_seconds`; the others take the tile that is planned for them.
    The fastest comes first, those that can't serve last.
    """
    # The torch backend in fp32 is the reference that every result is held against.
    reference = load(source, backend="torch_eager", precision="fp32", measure_seconds=0)
    call = _caller(image)
    expected = call(reference)
    work = work_of(reference.model, image)
    shown = f"{DRAWN} latents" if image is None else f"{image.shape[1]}x{image.shape[0]}"
    subjects: dict[str, _Subject] = {}
    firsts: dict[str, _First] = {}
    refused: list[Trial] = []
    asked = [(DEFAULT, "auto", "auto"), *((f"{n} {p}", n, p) for n in backends for p in precisions)]
    for name, backend, precision in asked:
        try:
            engine = load(source, backend=backend, precision=precision, measure_seconds=0)
            if name == DEFAULT and image is not None:
                channels = 1 if image.ndim == 2 else image.shape[2]
                engine.warm(*image.shape[:2], channels=channels, seconds=measure_seconds)
            subject = _Subject(name, engine, lambda engine=engine: call(engine))  # type: ignore[misc]
            firsts[name] = _first(subject)
        except (BackendError, CapacityError, DeviceError) as error:
            refused.append(Trial(Row(name, backend, precision, shown, refused=str(error))))
        else:
            subjects[name] = subject
    seconds = interleave({n: s.call for n, s in subjects.items()}, rounds=rounds, drop_factor=DROP_FACTOR)
    trials = []
    for name, taken in sorted(seconds.items(), key=lambda item: Timing.of(item[1]).median_s):
        subject, first = subjects[name], firsts[name]
        row = _row(subject, Row(name, "", "", shown), work, first, Timing.of(taken), expected, ceilings, image)
        trials.append(Trial(row, subject.engine, first.result))
    return trials + refused


def _sample(model: Model, size: tuple[int, int]) -> NDArray[np.uint8]:
    return sample_picture(size[1], size[0], 1 if model.image_channels == (1, 3) else 3)


def _caller(image: NDArray[np.uint8] | None) -> Callable[[Engine], NDArray[np.uint8]]:
    if image is None:
        return lambda engine: engine.generate(DRAWN, seed=0)
    return lambda engine: engine(image)


def _first(subject: _Subject) -> _First:
    results: list[NDArray[np.uint8]] = []

    def run() -> float:
        return timed(lambda: results.append(subject.call()))

    seconds, peak = peak_growth(run, subject.engine.serving.device)
    return _First(seconds, peak, results[0])


def _row(
    subject: _Subject,
    begun: Row,
    work: Work,
    first: _First,
    timing: Timing,
    expected: NDArray[np.uint8],
    ceilings: Mapping[Precision, Ceiling],
    image: NDArray[np.uint8] | None,
) -> Row:
    plan = None
    if image is not None:
        plan = subject.engine.plan(*image.shape[:2], channels=1 if image.ndim == 2 else image.shape[2])
    serving = subject.engine.serving
    backend, precision = (plan.backend, plan.precision) if plan else (serving.backend, serving.precision)
    seconds = timing.median_s
    gflops = None if work.flops is None else work.flops / seconds / 1e9
    gbs = None if work.bytes is None else work.bytes / seconds / 1e9
    ceiling = ceilings.get(precision, ceilings["fp32"])
    quality = psnr(first.result, expected)
    return replace(
        begun,
        backend=backend,
        precision=precision,
        windows=plan.windows if plan else 1,
        timing=timing,
        compile_s=max(0.0, first.seconds - seconds),
        images_per_s=work.images / seconds,
        input_mps=work.input_px / 1e6 / seconds,
        output_mps=work.output_px / 1e6 / seconds,
        gflops=gflops,
        gbs=gbs,
        matmul_share=None if gflops is None else gflops / ceiling.matmul_gflops,
        copy_share=None if gbs is None else gbs / ceiling.copy_gbs,
        peak_bytes=first.peak_bytes,
        psnr_db=None if math.isinf(quality) else quality,
        max_levels=max_levels(first.result, expected),
    )
