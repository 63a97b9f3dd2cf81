"""The other schedule: rows through the network with carried context, each computed once.

For networks whose halo is too deep for windows: an RRDBNet of 23 blocks reads 349 pixels on every side, and windows
would compute most of an image several times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tilefuse.cost import FLOAT_BYTES
from tilefuse.graph import Graph
from tilefuse.passes import unfuse
from tilefuse.row_schedule import Read, Release, RowSchedule, Run

ReadRows = Callable[[int, int], Tensor]


class RowStream:
    """One pass over images of `height` x `width`, both of sizes that the network takes, from output row `first` on.

    It holds the rows that the pass still needs; `RowSchedule` says which, and what it raises. `freed` is told how many
    bytes of tensors it let go of.
    """

    def __init__(
        self, graph: Graph, height: int, width: int, first: int = 0, freed: Callable[[int], None] = lambda _: None
    ) -> None:
        self._graph = unfuse(graph)
        channels = self._graph.inputs[0].shape[1] or 1
        self._schedule = RowSchedule(self._graph, (1, channels, height, width), first)
        self._rows: dict[str, Tensor] = {}
        self._starts: dict[str, int] = {}
        self._emitted = first
        self._freed = freed

    @property
    def rows(self) -> int:
        """Rows of the result."""
        return self._schedule.rows

    def advance(self, read: ReadRows, stop: int, chunk: int) -> Tensor:
        """Compute the result's next rows up to `stop`: [N, C, rows, W].

        `read` gives rows start..stop of the images, at most `chunk` at a time.
        """
        with torch.no_grad():
            for action in self._schedule.until(stop, chunk):
                match action:
                    case Read():
                        self._extend(self._schedule.input, action.start, read(action.start, action.stop))
                    case Run():
                        self._run(action)
                    case Release():
                        self._release(action)
        output = self._schedule.output
        # Rows that came out before may still be there, where another node reads them.
        origin = self._starts[output]
        made = self._rows[output][:, :, self._emitted - origin : stop - origin]
        self._emitted = stop
        self._release(self._schedule.emitted())
        return made

    def _run(self, run: Run) -> None:
        node = run.step.node
        inputs = [
            self._rows[name][:, :, run.low - self._starts[name] : run.high - self._starts[name]]
            if name in run.step.sources
            else self._graph.weights[name]
            for name in node.inputs
        ]
        origin = int(run.low * run.step.move.scale)
        self._extend(node.output, run.start, node.op.apply(*inputs)[:, :, run.start - origin : run.stop - origin])

    def _extend(self, name: str, start: int, rows: Tensor) -> None:
        held = self._rows.pop(name, None)
        if held is None:
            self._starts[name] = start
            self._rows[name] = rows
            return
        self._rows[name] = torch.cat((held, rows), 2)
        gone = held.nbytes + rows.nbytes
        del held, rows
        self._freed(gone)

    def _release(self, release: Release) -> None:
        held = self._rows.get(release.name)
        if held is None:
            return
        gone = release.row - self._starts[release.name]
        if gone <= 0:
            return
        if gone >= held.shape[2]:
            del self._rows[release.name]
        else:
            # A copy: a view would keep the rows in front of it.
            self._rows[release.name] = held[:, :, gone:].clone()
            self._starts[release.name] = release.row
        count = held.nbytes
        del held
        self._freed(count)


def peak_bytes(graph: Graph, height: int, width: int, stripe: int, stops: Sequence[int]) -> int:
    """Most bytes of float32 activations held at once while one image goes through to the result's rows `stops`.

    Counted, not run; a value that grows is there twice for a moment.
    """
    graph = unfuse(graph)
    schedule = RowSchedule(graph, (1, graph.inputs[0].shape[1] or 1, height, width))
    row = {name: FLOAT_BYTES * math.prod(shape[:2] + shape[3:]) for name, shape in schedule.shapes.items()}
    held: dict[str, range] = {}
    total = peak = 0
    for stop in stops:
        for action in (*schedule.until(stop, stripe), schedule.emitted()):
            name = action.name if isinstance(action, Release) else _extended(schedule, action)
            before = held.get(name)
            if isinstance(action, Release):
                after = range(action.row, before.stop) if before else range(0)
            else:
                after = range(before.start if before else action.start, action.stop)
                peak = max(peak, total + len(after) * row[name])
            total += (len(after) - len(before or ())) * row[name]
            held[name] = after
    return peak


def _extended(schedule: RowSchedule, action: Read | Run) -> str:
    return action.step.node.output if isinstance(action, Run) else schedule.input
