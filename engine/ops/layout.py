"""Ops that move elements without computing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tilefuse.ops.base import Op, PadMode, Sides, pad2d

ShuffleOrder = Literal["crd", "dcr"]


@dataclass(frozen=True)
class Concat(Op):
    """Join tensors along `dim`."""

    name: ClassVar[str] = "concat"
    dim: int = 1

    def apply(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, self.dim)


@dataclass(frozen=True)
class Slice(Op):
    """Take [start:stop:step] along `dim`, with Python's meaning of negative numbers and None."""

    name: ClassVar[str] = "slice"
    dim: int
    start: int
    stop: int | None = None
    step: int = 1

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        index = [slice(None)] * x.ndim
        index[self.dim] = slice(self.start, self.stop, self.step)
        return x[tuple(index)]


@dataclass(frozen=True)
class PixelShuffle(Op):
    """Move channels to space, [N, C·r², H, W] → [N, C, H·r, W·r]; "crd" is torch's order, "dcr" ONNX's default."""

    name: ClassVar[str] = "pixel_shuffle"
    factor: int
    order: ShuffleOrder = "crd"

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        if self.order == "crd":
            return F.pixel_shuffle(x, self.factor)
        n, c, h, w = x.shape
        r = self.factor
        return x.reshape(n, r, r, c // (r * r), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (r * r), h * r, w * r)


@dataclass(frozen=True)
class PixelUnshuffle(Op):
    """Move space to channels, [N, C, H·r, W·r] → [N, C·r², H, W]; "crd" is torch's order, "dcr" ONNX's SpaceToDepth."""

    name: ClassVar[str] = "pixel_unshuffle"
    factor: int
    order: ShuffleOrder = "crd"

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        if self.order == "crd":
            return F.pixel_unshuffle(x, self.factor)
        n, c, h, w = x.shape
        r = self.factor
        return x.reshape(n, c, h // r, r, w // r, r).permute(0, 3, 5, 1, 2, 4).reshape(n, c * r * r, h // r, w // r)


@dataclass(frozen=True)
class Pad(Op):
    """Pad height and width by (top, left, bottom, right); negative numbers crop."""

    name: ClassVar[str] = "pad"
    padding: Sides
    mode: PadMode = "constant"
    value: float = 0.0

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return pad2d(x, self.padding, self.mode, self.value)


@dataclass(frozen=True)
class Reshape(Op):
    """Give the elements a new shape: 0 keeps the input's size at that place, -1 is inferred, as in ONNX."""

    name: ClassVar[str] = "reshape"
    shape: tuple[int, ...]

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(self.shape)])
