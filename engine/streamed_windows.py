"""Windows of rasters larger than memory, as tensors or as integer pixels for a network."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from tilefuse.backends.pixels import Integers
from tilefuse.errors import ImageError
from tilefuse.images import bleed
from tilefuse.images.transparency import BLEED_RADIUS_PX
from tilefuse.memory import FULL_SCALE
from tilefuse.storage.base import Array, RasterInfo, RasterReader
from tilefuse.tiling import Span, Window


@dataclass(frozen=True)
class Planes:
    """How the bands become images of a batch: `groups` lists the bands of each image, alpha last and by itself."""

    groups: tuple[tuple[int, ...], ...]
    channels: tuple[int, int]
    alpha: bool

    def output_bands(self, group: int) -> int:
        """Bands that a group's result has."""
        is_alpha = self.alpha and group == len(self.groups) - 1
        if is_alpha or (
            len(self.groups[group]) == 1 and (self.channels[0] == self.channels[1] or len(self.groups) > 1)
        ):
            return 1
        return self.channels[1]

    def held_bytes_per_px(self, scale: Fraction, itemsize: int) -> float:
        """Bytes that a job holds for each input pixel of a window beside the network's own activations."""
        images, out = len(self.groups), float(scale) ** 2
        bands = sum(len(group) for group in self.groups)
        read = bands * (2 * itemsize + 4) + 4 * images * self.channels[0]
        # The images' results, joined, checked for finiteness; one of them rounded; all of them as samples.
        written = out * (9 * images * self.channels[1] + 8 * self.channels[1] + self.total_bands * itemsize)
        return read + written

    def are_pixels(self, info: RasterInfo) -> bool:
        """Tell whether the stored integers are the network's own channels, so that nothing but a type is converted."""
        whole = len(self.groups) == 1 and len(self.groups[0]) == info.bands == self.channels[0]
        plain = not self.alpha and info.value_range is None and info.dtype.kind == "u"
        return whole and plain and self.total_bands == self.channels[1]

    @property
    def total_bands(self) -> int:
        """Bands of the result."""
        return sum(self.output_bands(group) for group in range(len(self.groups)))


def split_bands(info: RasterInfo, channels: tuple[int, int], *, per_band: bool) -> Planes:
    """Decide which bands go through the network together.

    Raises:
        ImageError: neither gray nor RGB, and `per_band` was not asked for.
    """
    if channels[0] not in (1, 3):
        raise ImageError(f"the network takes images of {channels[0]} channels; rasters are run as 1 or 3")
    if per_band:
        return Planes(tuple((band,) for band in range(info.bands)), channels, False)
    alpha = info.alpha != "none"
    colour = info.bands - alpha
    if colour not in (1, 3):
        raise ImageError(f"it has {colour} bands, neither gray nor RGB; --per-band runs each by itself")
    groups = tuple((band,) for band in range(colour)) if channels[0] == 1 else (tuple(range(colour)),)
    return Planes((*groups, (colour,)) if alpha else groups, channels, alpha)


class RasterWindows:
    """Reads windows as float32 [N, C, h, w], one image for each group of bands; past the image it is reflected."""

    def __init__(self, reader: RasterReader, info: RasterInfo, planes: Planes) -> None:
        self._reader = reader
        self._info = info
        self._planes = planes
        self._low, self._span = bounds(info)

    def read(self, window: Window) -> Tensor:
        """Return one window. Raises ImageError for samples that are NaN or infinite."""
        info = self._info
        rows, columns = _positions(window.y, info.height), _positions(window.x, info.width)
        margin = BLEED_RADIUS_PX if self._planes.alpha else 0
        y0, y1 = max(0, int(rows.min()) - margin), min(info.height, int(rows.max()) + 1 + margin)
        x0, x1 = max(0, int(columns.min()) - margin), min(info.width, int(columns.max()) + 1 + margin)
        block = self._reader.read(y0, y1, x0, x1)
        if block.dtype.kind == "f" and not np.isfinite(block).all():
            raise ImageError(
                f"samples in rows {y0} to {y1}, columns {x0} to {x1} are NaN or infinite; replace them first"
            )
        if self._planes.alpha:
            colour = block[..., :-1]
            if info.alpha == "premultiplied":
                colour = _straight(colour, block[..., -1], FULL_SCALE[block.dtype])
            block = np.concatenate((bleed(colour, block[..., -1]), block[..., -1:]), axis=2)
        block = _taken(_taken(block, rows - y0, 0), columns - x0, 1)
        batch = torch.empty(len(self._planes.groups), self._planes.channels[0], len(rows), len(columns))
        values = torch.from_numpy(np.require(block.transpose(2, 0, 1), requirements=("C", "W")))
        for image, group in zip(batch, self._planes.groups, strict=True):
            image.copy_(values[list(group)] if len(group) > 1 else values[group[0]].expand_as(image))
        if self._low:
            batch -= self._low
        return batch.div_(self._span)


class RasterPixels:
    """Reads windows as integers [1, h, w, C], as they are stored; past the image it is reflected."""

    def __init__(self, reader: RasterReader) -> None:
        self._reader = reader

    def read(self, window: Window) -> Integers:
        """Return one window."""
        info = self._reader.info
        rows, columns = _positions(window.y, info.height), _positions(window.x, info.width)
        y0, x0 = int(rows.min()), int(columns.min())
        block = self._reader.read(y0, int(rows.max()) + 1, x0, int(columns.max()) + 1)
        return np.ascontiguousarray(_taken(_taken(block, rows - y0, 0), columns - x0, 1))[None]


def bounds(info: RasterInfo) -> tuple[float, float]:
    """Return the value that the network sees as 0, and the distance to the one it sees as 1."""
    if info.value_range is None:
        return 0.0, FULL_SCALE[info.dtype]
    return info.value_range[0], info.value_range[1] - info.value_range[0]


def _positions(span: Span, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the image positions of a span, reflected about the last one."""
    position = np.arange(span.start, span.stop)
    if span.stop <= size:
        return position
    if size == 1:
        return position * 0
    period = 2 * (size - 1)
    position %= period
    return np.minimum(position, period - position)


def _taken(block: Array, index: np.ndarray[tuple[int], np.dtype[np.int64]], axis: int) -> Array:
    if index[-1] - index[0] == len(index) - 1:
        cut = slice(int(index[0]), int(index[-1]) + 1)
        return block[cut] if axis == 0 else block[:, cut]
    return block.take(index, axis=axis)


def _straight(colour: Array, alpha: Array, full: float) -> Array:
    """Divide premultiplied colour by its alpha; transparent pixels have no colour and stay 0."""
    factor = np.divide(full, alpha, out=np.zeros(alpha.shape, np.float32), where=alpha > 0, dtype=np.float32)
    result = colour * factor[..., None]
    return result if colour.dtype.kind == "f" else np.rint(np.minimum(result, full)).astype(colour.dtype)
