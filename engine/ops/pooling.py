"""Ops that take the maximum or the average over space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tilefuse.ops.base import NO_PADDING, Op, Pair, Sides


@dataclass(frozen=True)
class Pool2d(Op):
    """Take the maximum or the average of a sliding window."""

    name: ClassVar[str] = "pool2d"
    kind: Literal["max", "avg"]
    kernel: Pair
    stride: Pair
    padding: Sides = NO_PADDING
    dilation: Pair = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        top, left, bottom, right = self.padding
        padding = (top, left)
        even = padding == (bottom, right) and all(2 * p <= k for p, k in zip(padding, self.kernel, strict=True))
        if self.kind == "max":
            if not even:
                x, padding = F.pad(x, (left, right, top, bottom), value=-torch.inf), (0, 0)
            return F.max_pool2d(x, self.kernel, self.stride, padding, self.dilation, self.ceil_mode)
        if even and self.dilation == (1, 1):
            return F.avg_pool2d(x, self.kernel, self.stride, padding, self.ceil_mode, self.count_include_pad)
        return self._average(x)

    def _average(self, x: Tensor) -> Tensor:
        """Average as a sum divided by a count, for the padding and dilation torch's pooling does not take."""
        top, left, bottom, right = self.padding
        sizes = []
        for axis, (before, after) in enumerate(((top, bottom), (left, right))):
            size, span = x.shape[2 + axis], self.dilation[axis] * (self.kernel[axis] - 1) + 1
            steps = (size + before + after - span) / self.stride[axis]
            out = int(-(-steps // 1) if self.ceil_mode else steps // 1) + 1
            # A window may not start in the padding after the data (torch and ONNX alike).
            if self.ceil_mode and (out - 1) * self.stride[axis] >= size + before:
                out -= 1
            sizes.append((before, max(after, (out - 1) * self.stride[axis] + span - size - before), out))
        (y0, y1, out_h), (x0, x1, out_w) = sizes
        mask = torch.ones_like(x[:1, :1])
        if self.count_include_pad:
            mask = F.pad(mask, (left, right, top, bottom), value=1.0)
            mask = F.pad(mask, (0, x1 - right, 0, y1 - bottom))
        else:
            mask = F.pad(mask, (x0, x1, y0, y1))
        ones = torch.ones(1, 1, *self.kernel, dtype=x.dtype, device=x.device)
        flat = F.pad(x, (x0, x1, y0, y1)).flatten(0, 1).unsqueeze(1)
        total = F.conv2d(flat, ones, None, self.stride, 0, self.dilation)
        count = F.conv2d(mask, ones, None, self.stride, 0, self.dilation)
        return (total / count)[..., :out_h, :out_w].reshape(*x.shape[:2], out_h, out_w)


@dataclass(frozen=True)
class AdaptivePool2d(Op):
    """Pool to a fixed output size whatever the input size; reaches across the whole image."""

    name: ClassVar[str] = "adaptive_pool2d"
    kind: Literal["max", "avg"]
    size: Pair

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        pool = F.adaptive_max_pool2d if self.kind == "max" else F.adaptive_avg_pool2d
        return pool(x, self.size)


@dataclass(frozen=True)
class Mean(Op):
    """Average over `dims`."""

    name: ClassVar[str] = "mean"
    dims: tuple[int, ...]
    keepdim: bool = True

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return x.mean(self.dims, keepdim=self.keepdim)
