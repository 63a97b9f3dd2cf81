"""One progress bar over all images, in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from rich.progress import Progress, TaskID

from tilefuse.commands.inputs import Pair
from tilefuse.storage import probe


@dataclass(frozen=True, eq=False)
class Pixels:
    """Input pixels done of all: `sizes` and `shares` say how many each image has and what part of it is done."""

    bars: Progress
    task: TaskID
    sizes: dict[Path, int]
    shares: dict[Path, float]
    lock: Lock

    @classmethod
    def of(cls, bars: Progress, pairs: Sequence[Pair]) -> Pixels:
        """Start a bar; sizes come from the headers, or from the plan where a header does not tell."""
        sizes = dict.fromkeys((pair.output for pair in pairs), 0)
        if not bars.disable and len(pairs) > 1:
            for pair in pairs:
                found = probe(pair.source)
                sizes[pair.output] = found[0] * found[1] if found else 0
        title = pairs[0].source.name if len(pairs) == 1 else f"{len(pairs)} images"
        return cls(bars, bars.add_task(title, total=None), sizes, dict.fromkeys(sizes, 0.0), Lock())

    def planned(self, pair: Pair, pixels: int) -> None:
        """Take the size of an image from its plan."""
        with self.lock:
            self.sizes[pair.output] = pixels
            self._show()

    def advance(self, pair: Pair, share: float) -> None:
        """Say what part of an image is done."""
        with self.lock:
            self.shares[pair.output] = share
            self._show()

    def _show(self) -> None:
        done = sum(size * self.shares[output] for output, size in self.sizes.items())
        self.bars.update(self.task, completed=done, total=sum(self.sizes.values()))
