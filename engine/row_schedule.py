"""Which rows of which value are read, computed and let go of when: the row schedule in whole numbers.

Each row of each value is computed once. What the rows to come still read is kept: of a 3 x 3 convolution's input the
last two rows, of a skip connection's as many as the way around it is deep.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from tilefuse.errors import CapacityError, ModelError
from tilefuse.footprint import footprint
from tilefuse.geometry import AxisMap, Interval, axis_maps
from tilefuse.graph import Graph, Node, Shape
from tilefuse.ops import Conv2d, ConvTranspose2d, Op, Pad


@dataclass(frozen=True)
class Step:
    """A node over rows: `size` rows come in, and its padding mirrors up to `mirrored` of them at a border.

    Its phases repeat every `unit` rows; `sources` are the inputs that have rows.
    """

    node: Node
    move: AxisMap
    sources: tuple[str, ...]
    size: int
    mirrored: int
    unit: int

    def reads(self, start: int, stop: int) -> Interval:
        """Give the input rows, the second left out, on which output rows start..stop come out right.

        They begin where the op's phases do, and are as many as its padding asks for.
        """
        first, last = self.move.reads(start, stop - 1)
        if self.mirrored:
            last = max(last, -first)
            first = min(first, 2 * (self.size - 1) - last, last - 2 * self.mirrored)
        low = min(max(first, 0), self.size - 1) // self.unit * self.unit
        high = -(-min(max(last + 1, low + 1), self.size) // self.unit) * self.unit
        return low, max(high, min(self.size, low + 2 * self.mirrored + 1))


@dataclass(frozen=True)
class Read:
    """Read rows start..stop of the image."""

    start: int
    stop: int


@dataclass(frozen=True)
class Run:
    """Compute rows start..stop of a node from its sources' rows low..high."""

    step: Step
    low: int
    high: int
    start: int
    stop: int


@dataclass(frozen=True)
class Release:
    """Let go of the rows of a value before `row`."""

    name: str
    row: int


class RowSchedule:
    """One pass over an image of `shape` [N, C, H, W], of sizes the network takes, from the result's row `first` on.

    It remembers how far the pass has come, and is made for one. `graph` has one op a node (see `passes.unfuse`).

    Raises:
        CapacityError: an op sees the whole image.
        ModelError: the graph maps no single image to an image.
    """

    def __init__(self, graph: Graph, shape: Shape, first: int = 0) -> None:
        found = footprint(graph)
        if found.global_ops:
            raise CapacityError(
                f"rows can't go through one by one: {found.global_ops[0]} sees the whole image. Use schedule whole"
            )
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise ModelError("rows go through networks of one image in and one image out")
        self.input, self.output = graph.inputs[0].name, graph.outputs[0]
        self.shapes = graph.shapes(shape)
        steps = self._steps_of(graph)
        starts = self._starts(steps, first)
        self._steps = [step for step in steps if step.node.output in starts]
        self._stops = dict(starts)
        self._readers: dict[str, list[Step]] = {name: [] for name in starts}
        for step in self._steps:
            for name in step.sources:
                self._readers[name].append(step)
        # After which step a value has no reader left; the result is let go of when the caller has it.
        last = {name: position for position, step in enumerate(self._steps) for name in step.sources}
        self._finished = [
            [name for name in step.sources if last[name] == position and name != self.output]
            for position, step in enumerate(self._steps)
        ]

    @property
    def rows(self) -> int:
        """Rows of the result."""
        return self.shapes[self.output][2]

    def until(self, stop: int, chunk: int) -> Iterator[Read | Run | Release]:
        """Give what to do until the result's rows up to `stop` are there, with at most `chunk` rows read at a time.

        The first rows of a deep network need many of the image's: those go through in pieces.
        """
        wanted = self._wanted(stop)
        while self._stops[self.output] < stop:
            there = self._stops[self.input]
            reached = max(there, min(wanted.get(self.input, 0), there + chunk))
            if reached > there:
                self._stops[self.input] = reached
                yield Read(there, reached)
            for step, finished in zip(self._steps, self._finished, strict=True):
                run = self._next(step, wanted.get(step.node.output, 0))
                if run is not None:
                    self._stops[step.node.output] = run.stop
                    yield run
                for name in finished:
                    yield Release(name, self._needed(name))

    def emitted(self) -> Release:
        """Give what of the result may go once the caller has it."""
        return Release(self.output, self._needed(self.output))

    def _steps_of(self, graph: Graph) -> list[Step]:
        spatial, steps = {self.input}, []
        for node in graph.nodes:
            sources = tuple(dict.fromkeys(name for name in node.inputs if name in spatial))
            if not sources:
                continue
            spatial.add(node.output)
            op = node.op
            weight = graph.weights[node.inputs[1]] if isinstance(op, Conv2d | ConvTranspose2d) else None
            move = axis_maps(op, (1, 1) if weight is None else (weight.shape[2], weight.shape[3]))[0]
            size = self.shapes[sources[0]][2]
            steps.append(Step(node, move, sources, size, _mirrored(op), move.scale.denominator))
        return steps

    def _starts(self, steps: list[Step], first: int) -> dict[str, int]:
        """Tell with which row each value that leads to the result begins, so that row `first` comes out right."""
        starts = {self.output: first}
        for step in reversed(steps):
            if step.node.output in starts:
                low, _ = step.reads(starts[step.node.output], starts[step.node.output] + 1)
                for name in step.sources:
                    starts[name] = min(starts.get(name, low), low)
        return starts

    def _wanted(self, stop: int) -> dict[str, int]:
        """Tell up to which row each value is needed for the result's rows up to `stop`."""
        wanted = {self.output: stop}
        for step in reversed(self._steps):
            name = step.node.output
            if wanted.get(name, 0) > self._stops[name]:
                _, high = step.reads(self._stops[name], wanted[name])
                for source in step.sources:
                    wanted[source] = max(wanted.get(source, 0), high)
        return wanted

    def _next(self, step: Step, wanted: int) -> Run | None:
        """Go on to the rows that are wanted, or as far as the rows there are allow."""
        start = self._stops[step.node.output]
        if wanted <= start:
            return None
        there = min(self._stops[name] for name in step.sources)
        low, high = step.reads(start, wanted)
        if high <= there:
            return Run(step, low, high, start, wanted)
        count = bisect_right(range(start + 1, wanted), there, key=lambda stop: step.reads(start, stop)[1])
        return Run(step, *step.reads(start, start + count), start, start + count) if count else None

    def _needed(self, name: str) -> int:
        """Give the first row of a value that something to come reads."""
        needed = self._stops[name]
        for step in self._readers[name]:
            stop = self._stops[step.node.output]
            if stop < self.shapes[step.node.output][2]:
                needed = min(needed, step.reads(stop, stop + 1)[0])
        return needed


def _mirrored(op: Op) -> int:
    """Give how many rows past a border an op fills with rows from inside."""
    match op:
        case Conv2d(padding_mode=mode, padding=padding) | Pad(mode=mode, padding=padding) if mode != "constant":
            return max(0, padding[0], padding[2])
    return 0
