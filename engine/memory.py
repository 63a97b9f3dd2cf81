"""Windows of images held in memory: numpy arrays in, numpy arrays out, converted window by window.

Only one window at a time exists in floating point, so an 8-bit image costs its own bytes and no more; where the
backend converts by itself, none does.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.backends.pixels import Integers
from tilefuse.tiling import Span, Window

Pixels = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.float32]

FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0, np.dtype(np.float32): 1.0}


class ArrayReader:
    """Reads windows of [N, H, W, C] pixels as float32 [N, C, h, w] in 0..1.

    A gray image is repeated for a network that takes more channels. Past the real image, where the network needs a
    larger or a divisible size, the image is reflected about its last row and column.
    """

    def __init__(self, pixels: Pixels, channels: int) -> None:
        self._pixels = pixels
        self._channels = channels

    def read(self, window: Window) -> Tensor:
        """Return one window."""
        _, height, width, depth = self._pixels.shape
        block = _take(_take(self._pixels, window.y, height, 1), window.x, width, 2)
        planes = torch.from_numpy(np.require(block.transpose(0, 3, 1, 2), requirements=("C", "W")))
        tile = planes.to(torch.float32).div_(FULL_SCALE[self._pixels.dtype])
        return tile if depth == self._channels else tile.expand(-1, self._channels, -1, -1).contiguous()


class ArrayWriter:
    """Writes cores into [N, H, W, C] pixels: rounded and clipped for integers, untouched for floats.

    Where the result has fewer channels than the core (gray through a colour network), the channels are averaged.
    """

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels

    def write(self, window: Window, core: Tensor) -> None:
        """Store one core."""
        y, x = window.y, window.x
        depth = self._pixels.shape[3]
        if core.shape[1] != depth:
            core = core.mean(1, keepdim=True)
        full = FULL_SCALE[self._pixels.dtype]
        if self._pixels.dtype != np.float32:
            core = (core * full).round_().clamp_(0, full)
        values = core.numpy().astype(self._pixels.dtype, copy=False)
        place = self._pixels[:, y.core_start : y.core_stop, x.core_start : x.core_stop]
        # Channel by channel: four times as fast as one assignment across the transposition.
        for channel in range(depth):
            place[..., channel] = values[:, channel]


class PixelReader:
    """Reads windows of [N, H, W, C] integers as they are; past the real image it is reflected."""

    def __init__(self, pixels: Integers) -> None:
        self._pixels = pixels

    def read(self, window: Window) -> Integers:
        """Return one window."""
        _, height, width, _ = self._pixels.shape
        block = _take(_take(self._pixels, window.y, height, 1), window.x, width, 2)
        return cast(Integers, np.ascontiguousarray(block))


class PixelWriter:
    """Writes cores of integers into [N, H, W, C] pixels."""

    def __init__(self, pixels: Integers) -> None:
        self._pixels = pixels

    def write(self, window: Window, core: Integers) -> None:
        """Store one core."""
        y, x = window.y, window.x
        self._pixels[:, y.core_start : y.core_stop, x.core_start : x.core_stop] = core


class PixelKeeper:
    """Keeps cores as they come, for an image of one window."""

    def __init__(self) -> None:
        self.cores: dict[Window, Integers] = {}

    def write(self, window: Window, core: Integers) -> None:
        """Keep one core."""
        self.cores[window] = core


def _take(pixels: Pixels, span: Span, size: int, axis: int) -> Pixels:
    """Cut a span out of one axis, reflecting where it passes the end."""
    if span.stop <= size:
        index = [slice(None)] * pixels.ndim
        index[axis] = slice(span.start, span.stop)
        return pixels[tuple(index)]
    period = max(2 * (size - 1), 1)
    position = np.arange(span.start, span.stop) % period
    return pixels.take(np.minimum(position, period - position) if size > 1 else position * 0, axis=axis)
