"""Ops that normalise by statistics, recorded or taken from the image itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tilefuse.ops.base import Op


@dataclass(frozen=True)
class BatchNorm(Op):
    """Normalise by recorded statistics. Inputs: x, weight [C], bias [C], mean [C], variance [C]."""

    name: ClassVar[str] = "batch_norm"
    eps: float = 1e-5

    def apply(self, *inputs: Tensor) -> Tensor:
        x, weight, bias, mean, variance = inputs
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=self.eps)


@dataclass(frozen=True)
class GroupNorm(Op):
    """Normalise over groups of channels and all of space. Inputs: x, weight [C], bias [C]. groups=0: one a channel."""

    name: ClassVar[str] = "group_norm"
    groups: int
    eps: float = 1e-5

    def apply(self, *inputs: Tensor) -> Tensor:
        x, weight, bias = inputs
        groups = self.groups or x.shape[1]
        # Written out: torch refuses the 1x1 image, whose normalised value is plainly 0.
        flat = x.reshape(x.shape[0], groups, -1)
        variance, mean = torch.var_mean(flat, dim=2, correction=0, keepdim=True)
        flat = (flat - mean) * torch.rsqrt(variance + self.eps)
        shape = (1, -1, *([1] * (x.ndim - 2)))
        return flat.reshape(x.shape) * weight.view(shape) + bias.view(shape)
