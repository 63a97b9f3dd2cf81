"""Ops that treat every element alone, and `Fused`, which runs several ops as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tilefuse.ops.base import Op

ActivationKind = Literal[
    "relu",
    "leaky_relu",
    "elu",
    "gelu",
    "gelu_tanh",
    "silu",
    "hardswish",
    "hardsigmoid",
    "tanh",
    "sigmoid",
    "softplus",
    "mish",
]


@dataclass(frozen=True)
class Activation(Op):
    """Apply a pointwise non-linearity without weights; `slope` is leaky_relu's or elu's, unused by the others."""

    name: ClassVar[str] = "activation"
    kind: ActivationKind
    slope: float = 0.0

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        match self.kind:
            case "relu":
                return F.relu(x)
            case "leaky_relu":
                return F.leaky_relu(x, self.slope)
            case "elu":
                return F.elu(x, self.slope)
            case "gelu":
                return F.gelu(x)
            case "gelu_tanh":
                return F.gelu(x, approximate="tanh")
            case "silu":
                return F.silu(x)
            case "hardswish":
                return F.hardswish(x)
            case "hardsigmoid":
                return F.hardsigmoid(x)
            case "tanh":
                return torch.tanh(x)
            case "sigmoid":
                return torch.sigmoid(x)
            case "softplus":
                return F.softplus(x)
            case "mish":
                return F.mish(x)


@dataclass(frozen=True)
class PRelu(Op):
    """Apply max(x, 0) + slope · min(x, 0). Inputs: x, and slope broadcastable to x ([C, 1, 1] for one a channel)."""

    name: ClassVar[str] = "prelu"

    def apply(self, *inputs: Tensor) -> Tensor:
        x, slope = inputs
        if slope.ndim == 3 and x.ndim == 4 and slope.shape[1:] == (1, 1) and slope.shape[0] in (1, x.shape[1]):
            return F.prelu(x, slope.flatten())
        return torch.where(x < 0, slope * x, x)


@dataclass(frozen=True)
class Clamp(Op):
    """Limit to [low, high]; None leaves that side open."""

    name: ClassVar[str] = "clamp"
    low: float | None = None
    high: float | None = None

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return x if self.low is None and self.high is None else torch.clamp(x, self.low, self.high)


@dataclass(frozen=True)
class Unary(Op):
    """Apply one arithmetic function to every element."""

    name: ClassVar[str] = "unary"
    kind: Literal["abs", "neg", "exp", "log", "sqrt", "rsqrt", "square", "reciprocal", "erf"]

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        result: Tensor = getattr(torch, self.kind)(x)
        return result


@dataclass(frozen=True)
class Round(Op):
    """Round to whole numbers, halves to even. What is not continuous makes tiles differ unless its input is exact."""

    name: ClassVar[str] = "round"

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return torch.round(x)


@dataclass(frozen=True)
class Cast(Op):
    """Convert to another floating type, rounding to nearest even."""

    name: ClassVar[str] = "cast"
    dtype: torch.dtype

    def apply(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        return x.to(self.dtype)


@dataclass(frozen=True)
class Binary(Op):
    """Combine two broadcastable tensors; a scalar is a weight of shape []."""

    name: ClassVar[str] = "binary"
    kind: Literal["add", "sub", "mul", "div", "max", "min"]

    def apply(self, *inputs: Tensor) -> Tensor:
        a, b = inputs
        match self.kind:
            case "add":
                return a + b
            case "sub":
                return a - b
            case "mul":
                return a * b
            case "div":
                return a / b
            case "max":
                return torch.maximum(a, b)
            case "min":
                return torch.minimum(a, b)


@dataclass(frozen=True)
class Fused(Op):
    """Several ops run as one: the first takes its inputs; each further one takes the running value and its own extras.

    `arities[i]` counts the tensors member i reads beside the running value (the head: all of its inputs).
    """

    name: ClassVar[str] = "fused"
    members: tuple[Op, ...]
    arities: tuple[int, ...]

    def apply(self, *inputs: Tensor) -> Tensor:
        value: tuple[Tensor, ...] = ()
        rest = inputs
        for op, arity in zip(self.members, self.arities, strict=True):
            value, rest = (op.apply(*value, *rest[:arity]),), rest[arity:]
        return value[0]
