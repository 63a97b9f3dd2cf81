"""Which of the ops fused behind a layer its kernel can take up as an epilogue, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilefuse.kernels.epilogue import MOST_RESIDUALS, Kind
from tilefuse.ops import Activation, Binary, Clamp, Op, PixelShuffle, PRelu


@dataclass(frozen=True)
class Sum:
    """A residual: value · value_scale + (the value `name`) · scale."""

    name: str
    scale: float
    value_scale: float


@dataclass(frozen=True, eq=False)
class Tail:
    """What a kernel does behind its layer, read from `taken` members. `order` is the shuffle's."""

    taken: int = 0
    activation: Kind = "none"
    slope: float = 0.0
    slopes: Tensor | None = None
    activation_last: bool = False
    residuals: tuple[Sum, ...] = ()
    shuffle: int = 1
    order: str = "crd"
    low: float | None = None
    high: float | None = None
    scale: float = 1.0
    shift: float = 0.0

    @property
    def is_affine(self) -> bool:
        """Tell whether a product or a sum with a number is pending."""
        return (self.scale, self.shift) != (1.0, 0.0)

    @property
    def is_clamped(self) -> bool:
        """Tell whether the value has been limited: nothing but a product and a sum may follow."""
        return self.low is not None or self.high is not None


def read_tail(members: Sequence[tuple[Op, tuple[str, ...]]], weights: Mapping[str, Tensor], channels: int) -> Tail:
    """Take up as many members, each an op and the names it reads beside the running value, as one epilogue holds.

    `channels` are the layer's own. The epilogue's order is activation, shuffle, residuals, limits, product and sum.
    """
    tail = Tail()
    for op, extras in members:
        longer = _extended(tail, op, extras, weights, channels)
        if longer is None:
            break
        tail = replace(longer, taken=tail.taken + 1)
    return tail


def _extended(tail: Tail, op: Op, extras: tuple[str, ...], weights: Mapping[str, Tensor], channels: int) -> Tail | None:
    """Append one member, or give None where the epilogue has no stage left for it."""
    match op:
        case Activation(kind=kind, slope=slope):
            return _activated(tail, kind, slope, None)
        case PRelu():
            slopes = weights[extras[0]].flatten()
            if slopes.numel() > 1 and tail.shuffle > 1:
                # One a channel of the shuffled image: each of its phases has the same.
                phases = tail.shuffle**2
                slopes = slopes.repeat_interleave(phases) if tail.order == "crd" else slopes.repeat(phases)
            usable = slopes.numel() in (1, channels) and not (tail.residuals and tail.shuffle > 1 < slopes.numel())
            return _activated(tail, "prelu", 0.0, slopes) if usable else None
        case PixelShuffle(factor=factor, order=order):
            if tail.shuffle > 1 or tail.residuals or tail.is_clamped or tail.is_affine:
                return None
            return replace(tail, shuffle=factor, order=order)
        case Clamp(low=low, high=high):
            return None if tail.is_clamped or tail.is_affine else replace(tail, low=low, high=high)
        case Binary(kind="add" | "sub" | "mul" | "div" as kind):
            if extras[0] not in weights:
                return _summed(tail, extras[0], kind)
            number = weights[extras[0]]
            return _scaled(tail, kind, float(number)) if number.numel() == 1 else None
    return None


def _activated(tail: Tail, kind: Kind, slope: float, slopes: Tensor | None) -> Tail | None:
    if tail.activation != "none" or tail.is_clamped or tail.is_affine:
        return None
    return replace(tail, activation=kind, slope=slope, slopes=slopes, activation_last=bool(tail.residuals))


def _summed(tail: Tail, name: str, kind: str) -> Tail | None:
    if kind not in ("add", "sub") or len(tail.residuals) == MOST_RESIDUALS:
        return None
    if tail.is_clamped or tail.activation_last or tail.shift != 0.0:
        return None
    residual = Sum(name, 1.0 if kind == "add" else -1.0, tail.scale)
    return replace(tail, residuals=(*tail.residuals, residual), scale=1.0)


def _scaled(tail: Tail, kind: str, number: float) -> Tail | None:
    match kind:
        case "add":
            return replace(tail, shift=tail.shift + number)
        case "sub":
            return replace(tail, shift=tail.shift - number)
        case "mul":
            return replace(tail, scale=tail.scale * number, shift=tail.shift * number)
    return replace(tail, scale=tail.scale / number, shift=tail.shift / number) if number else None


def shuffle_order(channels: int, factor: int) -> Tensor:
    """Give the channels of a layer with ONNX's order of a shuffle in torch's order."""
    return torch.arange(channels).view(factor**2, -1).T.flatten()
