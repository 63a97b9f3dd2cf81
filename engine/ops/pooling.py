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
            if even:
                return F.max_pool2d(x, self.kernel, self.stride, padding, self.dilation, self.ceil_mode)
            x = F.pad(x, (left, self._after(x, 1), top, self._after(x, 0)), value=-torch.inf)
            return F.max_pool2d(x, self.kernel, self.stride, 0, self.dilation)
        if even and self.dilation == (1, 1):
            return F.avg_pool2d(x, self.kernel, self.stride, padding, self.ceil_mode, self.count_include_pad)
        return self._average(x)

    def _after(self, x: Tensor, axis: int) -> int:
        """Rows (or columns) between the data's end and the last window's; negative where no window reaches the end."""
        size, before, after = x.shape[2 + axis], self.padding[axis], self.padding[2 + axis]
        span, stride = self.dilation[axis] * (self.kernel[axis] - 1) + 1, self.stride[axis]
        steps, rest = divmod(size + before + after - span, stride)
        # Rounding up adds a window, unless it would start in the padding after the data (torch and ONNX alike).
        if self.ceil_mode and rest:
            steps += 1
        if self.ceil_mode and steps * stride >= size + before:
            steps -= 1
        return steps * stride + span - size - before

    def _average(self, x: Tensor) -> Tensor:
        """Average as a sum divided by a count, for the padding and dilation torch's pooling does not take."""
        top, left, bottom, right = self.padding
        below, beside = self._after(x, 0), self._after(x, 1)
        mask = torch.ones_like(x[:1, :1])
        if self.count_include_pad:
            mask = F.pad(mask, (left, right, top, bottom), value=1.0)
            mask = F.pad(mask, (0, beside - right, 0, below - bottom))
        else:
            mask = F.pad(mask, (left, beside, top, below))
        ones = torch.ones(1, 1, *self.kernel, dtype=x.dtype, device=x.device)
        flat = F.pad(x, (left, beside, top, below)).flatten(0, 1).unsqueeze(1)
        total = F.conv2d(flat, ones, None, self.stride, 0, self.dilation)
        count = F.conv2d(mask, ones, None, self.stride, 0, self.dilation)
        return (total / count).view(*x.shape[:2], *total.shape[2:])


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
