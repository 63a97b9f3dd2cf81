"""A stand-in for a device's streams: work is done at once, and what real streams would leave unordered is found."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from queue import LifoQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# When each queue of work was last known to have got how far.
Clock = dict[Hashable, int]


@dataclass
class Event:
    """A mark: what is done once it is reached."""

    clock: Clock = field(default_factory=dict)


class Traced:
    """Streams by vector clocks: two uses of one piece of memory, one of them writing, need an order between them.

    Queues are the streams and the threads; work follows what its queue did before, what its thread did before it was
    enqueued, and the marks its queue waits for. `races` lists what is in no order, `log` all that was done.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clocks: defaultdict[Hashable, Clock] = defaultdict(dict)
        self.uses: defaultdict[int, list[tuple[Hashable, int, bool, str]]] = defaultdict(list)
        self.kept: list[Any] = []
        self.races: list[str] = []
        self.log: list[str] = []
        self.opened = 0
        self.drained: list[str] = []
        self.names: dict[int, str] = {}
        self.local = threading.local()

    @property
    def current(self) -> str:
        return getattr(self.local, "stream", "default")

    def stream(self) -> str:
        with self.lock:
            self.opened += 1
            return f"stream {self.opened}"

    def event(self) -> Event:
        return Event()

    @contextlib.contextmanager
    def entered(self, stream: str) -> Iterator[None]:
        before = self.current
        self.local.stream = stream
        try:
            with Watching(self):
                yield
        finally:
            self.local.stream = before

    def record(self, event: Event) -> None:
        with self.lock:
            event.clock = dict(self._step(self.current))
            self.log.append("record")

    def wait(self, event: Event) -> None:
        with self.lock:
            join(self.clocks[self.current], event.clock)
            self.log.append("wait")

    def finish(self, event: Event) -> None:
        with self.lock:
            join(self.clocks[threading.get_ident()], event.clock)
            self.log.append("finish")

    def drain(self, stream: str) -> None:
        with self.lock:
            join(self.clocks[threading.get_ident()], self.clocks[stream])
            self.drained.append(stream)

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.empty(shape, dtype=dtype)
        with self.lock:
            self.kept.append(made)
        return made

    def called(self, memory: Tensor, name: str) -> None:
        """Name a piece of memory for the log."""
        self.names[pointer(memory)] = name

    def touch(self, what: str, reads: list[int], writes: list[int], *, here: bool = False) -> None:
        """Use memory in the current stream, or `here`, in the calling thread."""
        with self.lock:
            queue: Hashable = threading.get_ident() if here else self.current
            clock = self._step(queue)
            told = [self.names.get(place, "lane") for place in (*reads, *writes)]
            self.log.append(f"{what} {' '.join(told)}")
            for place, writing in (*((r, False) for r in reads), *((w, True) for w in writes)):
                for other, moment, wrote, did in self.uses[place]:
                    if (writing or wrote) and clock.get(other, 0) < moment:
                        self.races.append(f"{what} in {queue} beside {did} in {other}")
                self.uses[place].append((queue, clock[queue], writing, what))

    def _step(self, queue: Hashable) -> Clock:
        clock = self.clocks[queue]
        join(clock, self.clocks[threading.get_ident()])
        clock[queue] = clock.get(queue, 0) + 1
        return clock


class Watching(TorchDispatchMode):
    """Tells of every operation of torch which memory it reads and writes."""

    def __init__(self, traced: Traced) -> None:
        super().__init__()
        self.traced = traced

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        reads, writes = [], []
        given = {**dict(zip([a.name for a in func._schema.arguments], args, strict=False)), **(kwargs or {})}
        for argument in func._schema.arguments:
            value = given.get(argument.name)
            if isinstance(value, Tensor):
                self.traced.kept.append(value)
                written = argument.alias_info is not None and argument.alias_info.is_write
                (writes if written else reads).append(pointer(value))
        if writes:
            self.traced.touch(func._schema.name.split("::")[1], reads, writes)
        return result


class Handed(LifoQueue[Any]):
    """A queue whose taker knows of all that the giver did."""

    def __init__(self, traced: Traced, items: int) -> None:
        super().__init__()
        self.traced = traced
        self.clock: Clock = {}
        for _ in range(items):
            super().put(None)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        with self.traced.lock:
            join(self.clock, self.traced.clocks[threading.get_ident()])
        super().put(item, block, timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        item = super().get(block, timeout)
        with self.traced.lock:
            join(self.traced.clocks[threading.get_ident()], self.clock)
        return item


def watch_host_copies(traced: Traced, monkeypatch: Any) -> None:
    """Tell of numpy's copies into and out of memory that streams use."""
    copy = np.copyto

    def told(target: Any, source: Any, **options: Any) -> None:
        traced.touch("host copy", [address(source)], [address(target)], here=True)
        traced.kept.extend((target, source))
        copy(target, source, **options)

    monkeypatch.setattr(np, "copyto", told)


def join(clock: Clock, other: Clock) -> None:
    """Know what another clock knows."""
    for queue, moment in list(other.items()):
        clock[queue] = max(clock.get(queue, 0), moment)


def pointer(x: Tensor) -> int:
    """Where the memory of a tensor begins."""
    return x.untyped_storage().data_ptr()


def address(array: np.ndarray) -> int:
    """Where the memory of an array begins that is no part of another one."""
    return int(array.ctypes.data)
