"""What may serve a model: a backend, a precision, threads and a tile; which of them are worth measuring."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from tilefuse.backends import registry
from tilefuse.backends.base import Precision
from tilefuse.backends.pixels import LANES
from tilefuse.cost import cost_of
from tilefuse.errors import UsageError
from tilefuse.machine import cache_bytes, has_bf16
from tilefuse.model import Model
from tilefuse.planner import TILE_CANDIDATES, input_shapes
from tilefuse.tiling import Grid, grid

BACKENDS_VARIABLE = "TILEFUSE_BACKENDS"
# These compute in Python's caller, one call beside another; ncnn's binding keeps Python's lock, torch shares one pool.
_PARALLEL = ("openvino", "onnxruntime")
# In one call of these an image of a batch gets the bits it gets alone. Not in OpenVINO (FSRCNN in windows of 23 pixels)
# and torch (ESPCN in windows of 24), which take other kernels for other batches.
_BATCHING = ("ncnn", "onnxruntime", "triton_fused")
BATCH = 4
# Windows of more work gain nothing from being called together. On one core, four windows of 24 pixels of ESPCN (0.04
# GFLOP) took 1.6 times as long one by one in ONNX Runtime and 3.2 times in ncnn, of 72 pixels (0.4 GFLOP) no longer. A
# GPU's bound is a guess by its speed.
_QUICK_FLOPS = {"cpu": 0.2e9, "cuda": 10e9}
_REDUCED: tuple[Precision, ...] = ("bf16",)
# Windows that compute more than this share of the image's own pixels gain nothing that a cache could give back.
_MOST_OVERLAP = 1.6
_TILES = 3


@dataclass(frozen=True)
class Candidate:
    """A way to run an image: windows of `tile` pixels (0: the whole image), `batch` of them in one call.

    `workers` calls run at once with `threads` on each.
    """

    backend: str
    precision: Precision
    threads: int
    workers: int = 1
    tile: int = 0
    batch: int = 1

    def __str__(self) -> str:
        tile = f"tile {self.tile}" if self.tile else "whole image"
        tile += f" in batches of {self.batch}" if self.batch > 1 else ""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        at_once = f", {self.workers} at once" if self.workers > 1 else ""
        return f"{self.backend} {self.precision}, {tile}{at_once}, {threads}{' each' if at_once else ''}"


def allowed_backends(forced: str) -> tuple[str, ...]:
    """Name the backends that may serve: the forced one, those in TILEFUSE_BACKENDS, or all.

    Raises:
        UsageError: one of the names is no backend's.
    """
    if forced != "auto":
        return (registry.get(forced).name,)
    listed = os.environ.get(BACKENDS_VARIABLE, "")
    names = tuple(name.strip() for name in listed.split(",") if name.strip())
    for name in names:
        if name not in registry.BACKENDS:
            raise UsageError(
                f"{BACKENDS_VARIABLE}={listed}: there is no backend {name!r}; list some of "
                f"{', '.join(registry.BACKENDS)}"
            )
    return names or registry.automatic()


def precisions(policy: str, dtype: str, device: str) -> tuple[Precision, ...]:
    """Name the precisions to try: reduced ones only for 8-bit images, where the machine has arithmetic for them."""
    match policy:
        case "fp32":
            return ("fp32",)
        case "bf16":
            return ("bf16",)
        case "fp16":
            return ("fp16",)
    if dtype != "uint8":
        return ("fp32",)
    if device.startswith("cuda"):
        return ("fp32", "bf16", "fp16")
    return ("fp32", *_REDUCED) if has_bf16() else ("fp32",)


def thread_splits(backend: str, threads: int, device: str = "cpu") -> tuple[tuple[int, int], ...]:
    """List (workers, threads of each) that make sense: all threads on one window, and one window for each thread.

    On a GPU a worker's threads compute nothing; a second worker of the backend that has lanes copies meanwhile.
    """
    if device.startswith("cuda"):
        return ((1, threads), (LANES, threads)) if backend == "triton_fused" else ((1, threads),)
    if threads == 1 or backend not in _PARALLEL:
        return ((1, threads),)
    return ((1, threads), (threads, 1))


def batches(model: Model, backend: str, device: str, cut: Grid) -> tuple[int, ...]:
    """List how many windows of a grid are worth a call of a backend: one, and several where they are quick."""
    if backend not in _BATCHING or model.graph is None or len(cut) < 2 * BATCH:
        return (1,)
    work = cost_of(model.graph, input_shapes(model.graph, 1, cut.window)).flops
    return (1, BATCH) if work <= _QUICK_FLOPS["cuda" if device.startswith("cuda") else "cpu"] else (1,)


def tiles(model: Model, height: int, width: int, device: str = "cpu") -> tuple[int, ...]:
    """List tile sizes worth measuring for an image, the whole image first, then those that stay in the cache.

    The largest tile whose activations fit the last-level cache comes first of these, then smaller ones. On a GPU it is
    the largest that cuts the image: one window is copied while another is computed.
    """
    found = model.geometry()
    if model.graph is None or found.global_ops:
        return (0,)
    fitting: list[int] = []
    for tile in (t for t in TILE_CANDIDATES if t < max(height, width)):
        cut = grid(height, width, tile, found)
        window_px = cut.window[0] * cut.window[1]
        computed = len(cut) * window_px / (height * width)
        if len(cut) == 1 or computed > _MOST_OVERLAP:
            continue
        live = cost_of(model.graph, input_shapes(model.graph, 1, cut.window)).live_bytes
        if device.startswith("cuda") or live <= 2 * cache_bytes():
            fitting.append(tile)
    return (0, *_spread(fitting, _TILES))


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Pick values about a factor of sqrt(2) or more apart, from the largest down."""
    picked: list[int] = []
    for value in values:
        if not picked or value <= picked[-1] / sqrt(2):
            picked.append(value)
    return picked[:count]
