"""Time on a device: CUDA events on a GPU; on a CPU, for a dry run of the same steps, the clock of the process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Call = Callable[[], object]
LEAST_ROUNDS, MOST_ROUNDS, WARM_ROUNDS = 5, 200, 3
# Written between rounds, so that none finds its data in the L2 (50 MB on an H200).
FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Timing:
    """Median and 20th and 80th percentile of the rounds, in milliseconds."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    rounds: int

    @classmethod
    def of(cls, milliseconds: list[float]) -> Timing:
        """Summarise one or more rounds."""
        p20, median, p80 = torch.tensor(milliseconds, dtype=torch.float64).quantile(
            torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
        )
        return cls(float(median), float(p20), float(p80), len(milliseconds))


class Clock(Protocol):
    """What the measurements need of a device."""

    device: str

    def time(self, call: Call, seconds: float) -> Timing:
        """Time rounds of a call for about so many seconds."""
        ...

    def captured(self, call: Call) -> Call:
        """Give a call that replays this one with the least overhead the device has."""
        ...

    def peak_bytes(self, call: Call) -> int:
        """Most device memory allocated while a call runs."""
        ...


class CudaClock:
    """Events around each round, the L2 flushed before it, outside the events."""

    device = "cuda"

    def __init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)

    def time(self, call: Call, seconds: float) -> Timing:
        for _ in range(WARM_ROUNDS):
            first = self._round(call)
        torch.cuda.synchronize()
        rounds = int(min(max(1000 * seconds / max(first[0].elapsed_time(first[1]), 1e-3), LEAST_ROUNDS), MOST_ROUNDS))
        events = [self._round(call) for _ in range(rounds)]
        torch.cuda.synchronize()
        return Timing.of([begin.elapsed_time(end) for begin, end in events])

    def captured(self, call: Call) -> Call:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_ROUNDS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def peak_bytes(self, call: Call) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def _round(self, call: Call) -> tuple[Any, Any]:
        self._flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        return begin, end


class HostClock:
    """One or two rounds on the CPU. Its figures say nothing; it is there to try the steps."""

    device = "cpu"

    def time(self, call: Call, seconds: float) -> Timing:  # noqa: ARG002
        begin = time.perf_counter()
        call()
        return Timing.of([1000 * (time.perf_counter() - begin)])

    def captured(self, call: Call) -> Call:
        return call

    def peak_bytes(self, call: Call) -> int:
        call()
        return 0


@dataclass(frozen=True)
class Ceilings:
    """What the device can do at most, measured: bytes read and written a second, and half-precision operations."""

    copy_gb_s: float
    half_tflop_s: float

    def share(self, bytes_: int, flops: int, milliseconds: float) -> tuple[float, str]:
        """Share of the ceiling that binds, and its name."""
        memory, matrix = bytes_ / (self.copy_gb_s * 1e6), flops / (self.half_tflop_s * 1e9)
        return max(memory, matrix) / milliseconds, "memory" if memory >= matrix else "matrix"


def measure_ceilings(clock: Clock, *, copy_bytes: int, edge: int, seconds: float) -> Ceilings:
    """Copy a large buffer, and multiply square matrices of halves."""
    source = torch.empty(copy_bytes // 4, dtype=torch.float32, device=clock.device).normal_()
    target = torch.empty_like(source)
    copied = clock.time(lambda: target.copy_(source), seconds)
    a, b = (torch.randn(edge, edge, device=clock.device).half() for _ in range(2))
    made: Tensor = torch.empty_like(a)
    multiplied = clock.time(clock.captured(lambda: torch.mm(a, b, out=made)), seconds)
    return Ceilings(2 * copy_bytes / copied.median_ms / 1e6, 2 * edge**3 / multiplied.median_ms / 1e9)
