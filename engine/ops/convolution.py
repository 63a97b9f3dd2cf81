"""Ops that multiply by a weight tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from tilefuse.ops.base import NO_PADDING, Op, PadMode, Pair, Sides, pad2d


@dataclass(frozen=True)
class Conv2d(Op):
    """Convolve. Inputs: x [N, C, H, W], weight [O, C / groups, KH, KW], and optionally bias [O]."""

    name: ClassVar[str] = "conv2d"
    stride: Pair = (1, 1)
    padding: Sides = NO_PADDING
    dilation: Pair = (1, 1)
    groups: int = 1
    padding_mode: PadMode = "constant"

    def apply(self, *inputs: Tensor) -> Tensor:
        x, weight, *bias = inputs
        top, left, bottom, right = self.padding
        padding = (top, left)
        if self.padding_mode != "constant" or padding != (bottom, right) or min(padding) < 0:
            x, padding = pad2d(x, self.padding, self.padding_mode), (0, 0)
        return F.conv2d(x, weight, bias[0] if bias else None, self.stride, padding, self.dilation, self.groups)


@dataclass(frozen=True)
class ConvTranspose2d(Op):
    """Convolve transposed. Inputs: x [N, C, H, W], weight [C, O / groups, KH, KW], and optionally bias [O]."""

    name: ClassVar[str] = "conv_transpose2d"
    stride: Pair = (1, 1)
    padding: Sides = NO_PADDING
    output_padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def apply(self, *inputs: Tensor) -> Tensor:
        x, weight, *bias = inputs
        top, left, bottom, right = self.padding
        native = zip(self.output_padding, self.stride, self.dilation, strict=True)
        if (top, left) == (bottom, right) and min(top, left) >= 0 and all(o < max(s, d) for o, s, d in native):
            b = bias[0] if bias else None
            extra = self.output_padding
            return F.conv_transpose2d(x, weight, b, self.stride, (top, left), extra, self.groups, self.dilation)
        # Past what torch takes: the full result, cropped (or extended by rows no input reaches), then the bias.
        full = F.conv_transpose2d(x, weight, None, self.stride, 0, 0, self.groups, self.dilation)
        extra_y, extra_x = self.output_padding
        out = F.pad(full, (-left, extra_x - right, -top, extra_y - bottom))
        return out + bias[0].view(1, -1, 1, 1) if bias else out


@dataclass(frozen=True)
class Linear(Op):
    """Multiply by a matrix: alpha · x @ weight + beta · bias, as ONNX Gemm.

    Inputs: x [.., I], weight [O, I] (or [I, O] when not `transpose_weight`), and optionally bias broadcastable to
    [.., O].
    """

    name: ClassVar[str] = "linear"
    alpha: float = 1.0
    beta: float = 1.0
    transpose_input: bool = False
    transpose_weight: bool = True

    def apply(self, *inputs: Tensor) -> Tensor:
        x, weight, *bias = inputs
        out = (x.mT if self.transpose_input else x) @ (weight.mT if self.transpose_weight else weight)
        if self.alpha != 1.0:
            out = self.alpha * out
        if bias:
            out = out + (bias[0] if self.beta == 1.0 else self.beta * bias[0])
        return out
