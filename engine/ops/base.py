"""What every op shares: its protocol and the types of its attributes. `Sides` are (top, left, bottom, right)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]
PadMode = Literal["constant", "reflect", "replicate", "circular"]

NO_PADDING: Sides = (0, 0, 0, 0)


class Op(ABC):
    """One operation: frozen attributes, and `apply`, its definition in plain torch."""

    name: ClassVar[str]

    @abstractmethod
    def apply(self, *inputs: Tensor) -> Tensor:
        """Compute the op's one output from its tensors."""


def pad2d(x: Tensor, sides: Sides, mode: PadMode, value: float = 0.0) -> Tensor:
    """Pad [.., H, W] by (top, left, bottom, right); negative numbers crop."""
    top, left, bottom, right = sides
    if sides == NO_PADDING:
        return x
    order = (left, right, top, bottom)
    if mode == "constant" or max(sides) <= 0:
        return F.pad(x, order, value=value)
    if mode == "circular" and min(sides) < 0:
        # Cropped here: torch checks the wrap against the size before cropping, and may copy rows that are gone.
        x = F.pad(x, [min(side, 0) for side in order])
        order = (max(left, 0), max(right, 0), max(top, 0), max(bottom, 0))
    return F.pad(x, order, mode=mode)
