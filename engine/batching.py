"""Several windows of one shape in one call of a backend: quicker where a window is so small that calling it counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from tilefuse.machine import release_after

if TYPE_CHECKING:
    from tilefuse.execute import Runner

Tile = TypeVar("Tile")


class Batch(Generic[Tile]):
    """Runs `size` windows at once; fewer are filled up with the last of them, so that one compiled shape serves all.

    `make` compiles for `size` windows, `forget` gives up what was compiled. Safe to use from several threads at once.
    """

    def __init__(self, size: int, make: Callable[[], Runner[Tile]], forget: Callable[[], None] = lambda: None) -> None:
        self.size = size
        self._make = make
        self._forget = forget
        self._out_of_memory = threading.Event()

    @property
    def notes(self) -> tuple[str, ...]:
        """Say that memory ran out, if it did."""
        if not self._out_of_memory.is_set():
            return ()
        return (f"memory ran out in batches of {self.size} windows: they were run one by one",)

    def run(self, tiles: Sequence[Tile]) -> list[Tile] | None:
        """Run up to `size` windows and return their results, or None where each is to go alone.

        That is where memory runs out, now or before, and where a result is not finite: which one, only running them
        one by one tells, and the others then stay what they would have been.
        """
        if self._out_of_memory.is_set():
            return None
        images = len(cast(Any, tiles[0]))
        filled = [*tiles, *[tiles[-1]] * (self.size - len(tiles))]
        try:
            result, finite = self._make().run(_joined(filled))
        except MemoryError as error:
            self._out_of_memory.set()
            self._forget()
            release_after(error)
            return None
        if not finite:
            return None
        return [cast(Any, result)[start : start + images] for start in range(0, len(tiles) * images, images)]


def _joined(tiles: Sequence[Any]) -> Any:
    """Join float tensors [N, C, H, W] or integer arrays [N, H, W, C] along their first axis."""
    return torch.cat(list(tiles)) if isinstance(tiles[0], Tensor) else np.concatenate(tiles)
