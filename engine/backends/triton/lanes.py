"""Lanes to an arena: pixels of one caller go up and come down while another's are computed.

A lane has page-locked memory for pixels in and out, the same again on the device, and a stream of its own. What all
lanes share, the arena, is used in turns: the order is an event's, and no thread waits for the device to keep it.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from queue import LifoQueue
from typing import Any, Protocol

import torch
from torch import Tensor

from tilefuse.backends.pixels import LANES
from tilefuse.graph import Shape
from tilefuse.kernels.image_store import empty_pixels


class Streams(Protocol):
    """How work on a device is ordered: by streams and events, or by being done when a call returns."""

    def stream(self) -> Any:
        """Open a queue of work."""
        ...

    def event(self) -> Any:
        """Make a mark to put into queues; one that lies in none yet holds nobody up."""
        ...

    def entered(self, stream: Any) -> AbstractContextManager[Any]:
        """Let what the calling thread enqueues go into a stream."""
        ...

    def record(self, event: Any) -> None:
        """Move a mark behind what the current stream holds."""
        ...

    def wait(self, event: Any) -> None:
        """Let what the current stream is given from now on wait for a mark as it lies now."""
        ...

    def finish(self, event: Any) -> None:
        """Wait in the calling thread for a mark."""
        ...

    def drain(self, stream: Any) -> None:
        """Wait in the calling thread for all that a stream holds."""
        ...

    def host(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Allocate memory of this machine that the device copies from and to while the processor does other things."""
        ...


class AtOnce:
    """A processor: nothing is left to wait for when a call returns."""

    def stream(self) -> None:
        return None

    def event(self) -> None:
        return None

    def entered(self, stream: None) -> AbstractContextManager[None]:  # noqa: ARG002
        return contextlib.nullcontext()

    def record(self, event: None) -> None:
        pass

    def wait(self, event: None) -> None:
        pass

    def finish(self, event: None) -> None:
        pass

    def drain(self, stream: None) -> None:
        pass

    def host(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)


@dataclass(frozen=True)
class CudaStreams:
    """A CUDA device, which its callers have made current."""

    device: torch.device

    def stream(self) -> torch.cuda.Stream:
        # torch deals out 32 streams of each priority, over and over. Graphs are captured in one of priority 0: of
        # another priority, no lane's work can end up in a graph that another thread captures.
        return torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]

    def event(self) -> torch.cuda.Event:
        # Blocking: a thread that waits leaves the processor to those that read, write and encode.
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def entered(self, stream: torch.cuda.Stream) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def record(self, event: torch.cuda.Event) -> None:
        event.record()

    def wait(self, event: torch.cuda.Event) -> None:
        event.wait()

    def finish(self, event: torch.cuda.Event) -> None:
        event.synchronize()

    def drain(self, stream: torch.cuda.Stream) -> None:
        stream.synchronize()

    def host(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)


@dataclass(frozen=True, eq=False)
class Lane:
    """The way of one caller at a time. `given`, `made` and `told` are this machine's, the others the device's.

    `done` is the mark behind a caller's last copy. `flag` and `told` int32 [1] tell of values that are not finite.
    """

    stream: Any
    done: Any
    given: Tensor
    made: Tensor
    told: Tensor
    source: Tensor
    result: Tensor
    flag: Tensor


def open_lane(
    streams: Streams, device: torch.device, source: Shape, result: tuple[int, int, int, int], dtype: torch.dtype
) -> Lane:
    """Allocate a lane for pixels [N, H, W, C] of the given shapes.

    What is allocated in a stream and used in no other may be freed at any time: torch gives it to nobody but that
    stream, behind the work that still uses it.
    """
    stream = streams.stream()
    with streams.entered(stream):
        on_device = (
            torch.empty(source, dtype=dtype, device=device),
            empty_pixels(result, dtype, device),
            torch.empty(1, dtype=torch.int32, device=device),
        )
    here = streams.host(source, dtype), streams.host(result, dtype), streams.host((1,), torch.int32)
    return Lane(stream, streams.event(), *here, *on_device)


def closed_lanes() -> LifoQueue[Lane | None]:
    """Give the lanes of a session, none of them open: the last one given back is the first one taken again."""
    lanes: LifoQueue[Lane | None] = LifoQueue()
    for _ in range(LANES):
        lanes.put(None)
    return lanes


def lane_bytes(source: Shape, result: Shape, itemsize: int) -> int:
    """Bytes that a lane holds on the device for its pixels, and as many again in this machine's memory."""
    return (prod(source) + prod(result)) * itemsize
