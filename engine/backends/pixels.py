"""Windows of integer pixels: conversion inside the backend where it can, around it where it can't."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.backends.base import Backend, Precision, Session
from tilefuse.cost import FLOAT_BYTES
from tilefuse.errors import BackendError
from tilefuse.graph import Shape
from tilefuse.model import Model

# Floats converted at once: they stay in the cache from one step to the next, which is three times as fast.
_PASS_BYTES = 4 << 20

# Callers that one session on a GPU serves at once: one's pixels are copied while another's are computed. A third waits.
LANES = 2

Integers: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]


class PixelSession(Protocol):
    """A model compiled for windows of integer pixels. Safe to run from many threads at once."""

    def run(self, pixels: Integers) -> tuple[Integers, bool]:
        """Run [N, H, W, C] integers, which mean 0..1, and return [N, H', W', C'] of the same type, owned by the caller.

        The second value tells whether the network's own values were all finite.

        Raises:
            DeviceError: the library failed while running.
            MemoryError: memory ran out; the caller may retry with a smaller window.
        """
        ...


@runtime_checkable
class PixelBackend(Protocol):
    """A backend that converts integers by itself."""

    def compile_pixels(
        self,
        model: Model,
        shape: Shape,
        dtype: np.dtype[Any],
        *,
        device: str,
        precision: Precision,
        threads: int,
    ) -> PixelSession:
        """Compile for windows of integers; `shape` is [N, C, H, W] as the network sees it.

        Raises:
            BackendError: the backend can't serve this model so.
        """
        ...


def compile_pixels(
    backend: Backend,
    model: Model,
    shape: Shape,
    dtype: np.dtype[Any],
    *,
    device: str,
    precision: Precision,
    threads: int,
) -> PixelSession:
    """Compile a model for windows of integers, in the backend itself where it knows how.

    Raises:
        BackendError: the backend can't serve this model so.
    """
    if isinstance(backend, PixelBackend) and model.graph is not None:
        try:
            return backend.compile_pixels(model, shape, dtype, device=device, precision=precision, threads=threads)
        except BackendError:
            # What the library can't convert is converted around it; what it can't compile at all is refused below.
            pass
    session = backend.compile(model, [shape], device=device, precision=precision, threads=threads)
    return ConvertedSession(session, np.dtype(dtype))


@dataclass(frozen=True)
class ConvertedSession:
    """A session of floats with the conversions around it."""

    session: Session
    dtype: np.dtype[Any]

    def run(self, pixels: Integers) -> tuple[Integers, bool]:
        result = self.session.run(torch.from_numpy(to_values(pixels)))[0]
        finite = is_finite(result)
        return to_pixels(result, self.dtype), finite


# In numpy and one thread, here and below: to wake torch's threads beside those of another library takes milliseconds.
def to_values(pixels: Integers) -> NDArray[np.float32]:
    """Return [N, H, W, C] integers, which mean 0..1, as float32 [N, C, H, W]."""
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
    planes /= np.float32(np.iinfo(pixels.dtype).max)
    return planes


def is_finite(values: Tensor) -> bool:
    """Tell whether every value is finite: a NaN or an infinity shows in the extremes."""
    array = values.numpy()
    return array.size == 0 or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def to_pixels(values: Tensor, dtype: np.dtype[Any], black: float = 0.0, white: float = 1.0) -> NDArray[Any]:
    """Round float32 [N, C, H, W] to even, clip, and return [N, H, W, C] integers; NaN gives any."""
    array, full = values.numpy(), np.float32(np.iinfo(dtype).max)
    count, channels, height, width = array.shape
    pixels = np.empty((count, height, width, channels), dtype)
    rows = max(1, _PASS_BYTES // (FLOAT_BYTES * count * channels * width))
    passed = np.empty((count, channels, min(rows, height), width), np.float32)
    for top in range(0, height, rows):
        part = array[:, :, top : top + rows]
        scaled = passed[:, :, : part.shape[2]]
        if black != 0:
            part = np.subtract(part, np.float32(black), out=scaled)
        np.multiply(part, np.float32(full / (white - black)), out=scaled)
        np.clip(np.rint(scaled, out=scaled), 0, full, out=scaled)
        with np.errstate(invalid="ignore"):
            planes = scaled.astype(dtype)
        for channel in range(channels):
            pixels[:, top : top + rows, :, channel] = planes[:, channel]
    return pixels


def interleaved(planes: NDArray[Any]) -> NDArray[Any]:
    """Return [N, C, H, W] as contiguous [N, H, W, C]."""
    count, channels, height, width = planes.shape
    pixels = np.empty((count, height, width, channels), planes.dtype)
    for channel in range(channels):
        pixels[..., channel] = planes[:, channel]
    return pixels


def check_pixels(pixels: Integers, shape: Sequence[int]) -> None:
    """Raise BackendError unless the pixels have the compiled shape [N, H, W, C]."""
    if tuple(pixels.shape) != tuple(shape):
        raise BackendError(f"the session was compiled for pixels of {list(shape)}; {list(pixels.shape)} were given")
