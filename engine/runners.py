"""Compiled networks as `execute` runs them: on float tensors, or on integer pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tilefuse.backends.base import Session
from tilefuse.backends.pixels import Integers, PixelSession, is_finite


@dataclass(frozen=True)
class FloatRunner:
    """Runs float32 [N, C, H, W]. With `one_by_one` the images of a batch take turns, in the memory of one."""

    session: Session
    one_by_one: bool = False

    def run(self, tile: Tensor) -> tuple[Tensor, bool]:
        if self.one_by_one and tile.shape[0] > 1:
            result = torch.cat([self.session.run(image[None])[0] for image in tile])
        else:
            result = self.session.run(tile)[0]
        return result, is_finite(result) or all(
            is_finite(drawn) or not is_finite(image) for image, drawn in zip(tile, result, strict=True)
        )

    def crop(self, result: Tensor, rows: slice, columns: slice) -> Tensor:
        return result[:, :, rows, columns]


@dataclass(frozen=True)
class PixelRunner:
    """Runs integers [N, H, W, C]; the conversion is the session's."""

    session: PixelSession

    def run(self, tile: Integers) -> tuple[Integers, bool]:
        return self.session.run(tile)

    def crop(self, result: Integers, rows: slice, columns: slice) -> Integers:
        return result[:, rows, columns]
