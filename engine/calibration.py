"""What a candidate must give back: a picture to measure with, and fp32 torch's result of a patch of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.backends import registry
from tilefuse.backends.base import Precision, Session
from tilefuse.backends.pixels import to_pixels
from tilefuse.cost import flops
from tilefuse.memory import FULL_SCALE, Pixels
from tilefuse.model import Model
from tilefuse.planner import input_shapes
from tilefuse.sample import sample_picture

# What fp32 may differ from torch's fp32, of full scale. At 8 bits that turns at most one rounding in twenty.
FP32_TOLERANCE = 1e-4
FP32_PSNR_DB = 61.0
# What a reduced precision may differ at 8 bits: one level anywhere, and this much on average.
REDUCED_LEVELS = 1
REDUCED_PSNR_DB = 50.0
_PICTURE_PX = 512
_NOISE_PX = 24
# Of the smallest half is noise, as of the whole picture.
_LARGEST_PROBE_PX, _SMALLEST_PROBE_PX = 160, 2 * _NOISE_PX


@dataclass(frozen=True)
class Difference:
    """How far a result is from the reference; `reason` says why it may not serve, None when it may.

    `levels` is the largest difference in levels of 8 bits, `psnr_db` infinite for equal results.
    """

    levels: float
    psnr_db: float
    reason: str | None


def picture(height: int, width: int, channels: int, images: int, dtype: np.dtype[Any]) -> Pixels:
    """Draw pixels [N, H, W, C], photograph-like with squares of noise; a smaller picture is a larger one's corner."""
    small = _sample(channels)[:height, :width]
    margin = ((0, height - small.shape[0]), (0, width - small.shape[1]), (0, 0))
    drawn = np.pad(small, margin, mode="symmetric")
    values = drawn if dtype == np.uint8 else (drawn * (FULL_SCALE[dtype] / 255)).astype(dtype)
    result: Pixels = np.ascontiguousarray(np.broadcast_to(values, (images, *values.shape)))
    return result


@cache
def _sample(channels: int) -> NDArray[np.uint8]:
    drawn = sample_picture(_PICTURE_PX, _PICTURE_PX, channels)
    # Rounding shows most in noise of full contrast. In bfloat16, Compact stayed within a level in a patch of the drawn
    # picture and missed it in ten of 14 photographs; EDSR, which stays within it in noise, missed it in none.
    noise = np.random.default_rng(0).integers(0, 256, drawn.shape, np.uint8)
    squares = np.indices(drawn.shape[:2]) // _NOISE_PX
    return np.where((squares.sum(0) % 2 == 1)[..., None], noise, drawn)


def probe_size(model: Model, height: int, width: int, most_flops: float) -> tuple[int, int]:
    """Choose a patch, as the network can take it, that fp32 torch runs in at most about `most_flops`."""
    found = model.geometry()
    edge = _LARGEST_PROBE_PX
    while True:
        size = (found.y.padded(min(edge, height), found.minimum_px), found.x.padded(min(edge, width), found.minimum_px))
        if model.graph is None or edge <= _SMALLEST_PROBE_PX:
            return size
        if flops(model.graph, model.graph.shapes(*input_shapes(model.graph, 1, size))) <= most_flops:
            return size
        edge = max(_SMALLEST_PROBE_PX, edge * 3 // 4)


def reference_of(model: Model) -> Callable[[Tensor], Tensor]:
    """Give what computes the result that is right by definition: the graph in fp32 torch, else the model as it came."""
    if model.graph is not None:
        graph = model.graph
        return lambda tile: graph.evaluate(tile)[0]
    name = "torch_eager" if model.module is not None else "onnxruntime"

    def run(tile: Tensor) -> Tensor:
        session: Session = registry.get(name).compile(
            model, [tuple(tile.shape)], device="cpu", precision="fp32", threads=torch.get_num_threads()
        )
        return session.run(tile)[0]

    return run


def compare(result: NDArray[Any], reference: Tensor, precision: Precision, *, forced: bool) -> Difference:
    """Compare pixels [N, H, W, C] with the reference's float32 [N, C, H, W].

    A precision that the user asked for by name (`forced`) only has to be finite.
    """
    if result.dtype == np.float32:
        actual, expected = result.astype(np.float64), reference.permute(0, 2, 3, 1).double().numpy()
        full = 1.0
    else:
        actual = result.astype(np.float64)
        expected = to_pixels(reference.clone(), result.dtype).astype(np.float64)
        full = FULL_SCALE[result.dtype]
    if not np.isfinite(actual).all():
        return Difference(math.inf, -math.inf, "its result is not finite")
    error = np.abs(actual - expected) / full
    largest, mean_square = float(error.max()), float(np.square(error).mean())
    psnr = math.inf if mean_square == 0 else -10 * math.log10(mean_square)
    levels = largest * 255
    return Difference(levels, psnr, _reason(largest, psnr, result.dtype, precision, forced))


def _reason(largest: float, psnr: float, dtype: np.dtype[Any], precision: Precision, forced: bool) -> str | None:
    levels = largest * 255
    if precision != "fp32":
        if forced or (levels <= REDUCED_LEVELS + 1e-6 and psnr >= REDUCED_PSNR_DB):
            return None
        return f"it differs from fp32 by {levels:.3g} levels of 8 bits, {psnr:.1f} dB"
    if dtype == np.uint8:
        right = levels <= 1 + 1e-6 and psnr >= FP32_PSNR_DB
    else:
        # A rounding to 16 bits may go either way.
        right = largest <= FP32_TOLERANCE + (1 / 65535 if dtype == np.uint16 else 0.0)
    return None if right else f"its fp32 differs from torch's by {levels:.3g} levels of 8 bits, {psnr:.1f} dB"
