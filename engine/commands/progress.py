"""One progress bar over all images, in pixels, and one for each result that is being encoded, in its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from rich.progress import Progress, TaskID

from tilefuse.commands.inputs import Pair
from tilefuse.images.outputs import shown
from tilefuse.storage import probe


@dataclass(frozen=True, eq=False)
class Pixels:
    """Input pixels done of all: `sizes` and `shares` say how many each image has and what part of it is done.

    `encoding` are the bars of results that are being encoded.
    """

    bars: Progress
    task: TaskID
    sizes: dict[Path, int]
    shares: dict[Path, float]
    encoding: dict[Path, TaskID]
    lock: Lock

    @classmethod
    def of(cls, bars: Progress, pairs: Sequence[Pair]) -> Pixels:
        """Start a bar; sizes come from the headers, or from the plan where a header does not tell."""
        sizes = dict.fromkeys((pair.output for pair in pairs), 0)
        if not bars.disable and len(pairs) > 1:
            for pair in pairs:
                found = probe(pair.source)
                sizes[pair.output] = found[0] * found[1] if found else 0
        title = shown(pairs[0].source.name) if len(pairs) == 1 else f"{len(pairs)} images"
        return cls(bars, bars.add_task(title, total=None), sizes, dict.fromkeys(sizes, 0.0), {}, Lock())

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

    def encoded(self, pair: Pair, rows: int, total: int) -> None:
        """Say how many of a result's rows are encoded."""
        with self.lock:
            if pair.output not in self.encoding:
                self.encoding[pair.output] = self.bars.add_task(f"encoding {shown(pair.output.name)}", total=total)
            self.bars.update(self.encoding[pair.output], completed=rows)

    def ended(self, pair: Pair) -> None:
        """Take away the bar of a result that is being encoded no more."""
        with self.lock:
            if pair.output in self.encoding:
                self.bars.remove_task(self.encoding.pop(pair.output))

    def _show(self) -> None:
        done = sum(size * self.shares[output] for output, size in self.sizes.items())
        self.bars.update(self.task, completed=done, total=sum(self.sizes.values()))
