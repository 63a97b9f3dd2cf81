"""Running a program: its arena on a device, its calls bound to tensors, replayed as a CUDA graph where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import LifoQueue
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilefuse.backends.library import check_inputs, failure
from tilefuse.backends.pixels import LANES, Integers, check_pixels
from tilefuse.backends.precision import exact_fp32
from tilefuse.backends.triton.lanes import (
    AtOnce,
    CudaStreams,
    Lane,
    Streams,
    closed_lanes,
    lane_bytes,
    open_lane,
)
from tilefuse.backends.triton.operations import logical
from tilefuse.backends.triton.places import Operation, Place, Program
from tilefuse.errors import BackendError
from tilefuse.graph import Shape
from tilefuse.kernels.image_load import image_load
from tilefuse.kernels.image_store import FULL_SCALE, image_store
from tilefuse.kernels.tensors import INTERPRETED

NAME = "triton_fused"
# torch captures one graph at a time in a process.
_CAPTURING = Lock()


@dataclass(frozen=True)
class Bound:
    """A call with its tensors."""

    operation: Operation
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Bindings:
    """A program on a device: its arena, its calls, and the graph that replays them on a CUDA device.

    Attributes:
        flag: int32 [1] that a call sets behind values that are not finite; None where no call does.
        graph: None on a CPU, where the calls run one after the other.
        streams: how the device's work is ordered.
        used: the mark behind the arena's last use.
        lock: held while work on the arena is enqueued; threads take turns.
    """

    program: Program
    device: torch.device
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    calls: tuple[Bound, ...]
    flag: Tensor | None
    graph: Any
    streams: Streams
    used: Any
    lock: Lock = field(default_factory=Lock)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Have the arena: the current stream waits for the one that had it last, and the next one for this."""
        with self.lock:
            self.streams.wait(self.used)
            try:
                yield
            finally:
                # After a failure too: part of the work may be on its way.
                self.streams.record(self.used)

    def replay(self) -> None:
        """Run every call on what lies in the inputs."""
        if self.graph is not None:
            self.graph.replay()
        else:
            _run(self.calls)


def bind(program: Program, device: str) -> Bindings:
    """Allocate a program's arena, copy its constants and capture its calls.

    Raises:
        MemoryError: the arena or the constants do not fit.
        BackendError: a kernel refuses what it is given, or does not compile.
    """
    place = torch.device(device)
    arena = torch.empty(program.arena_bytes, dtype=torch.uint8, device=place)

    def tensor(view: Place) -> Tensor:
        start = program.offsets[view.buffer] // view.dtype.itemsize
        return arena.view(view.dtype).as_strided(view.shape, view.strides, start + view.offset)

    calls = tuple(
        Bound(call.operation.to(place), tuple(map(tensor, call.reads)), tuple(map(tensor, call.writes)))
        for call in program.calls
    )
    inputs, outputs = tuple(map(tensor, program.inputs)), tuple(map(tensor, program.outputs))
    graph = _capture(calls, place) if place.type == "cuda" else None
    flag = None if program.flag is None else tensor(program.flag)
    streams: Streams = CudaStreams(place) if place.type == "cuda" else AtOnce()
    return Bindings(program, place, inputs, outputs, calls, flag, graph, streams, streams.event())


@dataclass(frozen=True, eq=False)
class TritonSession:
    """A program that takes and gives float32 tensors in the graph's axes, whatever their strides."""

    bindings: Bindings
    shapes: tuple[Shape, ...]

    def run(self, *inputs: Tensor) -> list[Tensor]:
        check_inputs(inputs, self.shapes)
        bound = self.bindings
        if inputs and inputs[0].ndim and inputs[0].shape[0] == 0:
            return [inputs[0].new_empty(0, *shape[1:], dtype=torch.float32) for shape in bound.program.output_shapes]
        try:
            with _on(bound.device):
                with bound.turn():
                    for x, target in zip(inputs, bound.inputs, strict=True):
                        image_load(_flat(_physical(x.detach().to(bound.device))), out=_flat(target))
                    bound.replay()
                    # Dense in the kernels' order: a channels_last result is no copy.
                    results = [torch.empty(place.shape, device=bound.device) for place in bound.outputs]
                    for result, source in zip(results, bound.outputs, strict=True):
                        image_load(_flat(source), out=_flat(result))
                    done = bound.streams.event()
                    bound.streams.record(done)
                # Where the inputs lie, the outputs do.
                results = [result.to(inputs[0].device) for result in results]
                # Whoever gives the session up now frees an arena that nothing uses any more.
                bound.streams.finish(done)
        except (RuntimeError, MemoryError) as error:
            raise failure(NAME, error) from error
        shapes = bound.program.output_shapes
        return [logical(result, len(shape)) for result, shape in zip(results, shapes, strict=True)]


@dataclass(frozen=True, eq=False)
class TritonPixelSession:
    """A program that takes and gives integer pixels as they lie in an image.

    Its first and its last kernel convert them; where they can't (`fuse_pixels`), a kernel before or behind them does.
    Up to `LANES` callers are served at once: one's pixels are copied while another's are computed. An `empty` one was
    compiled for batches of no images.
    """

    bindings: Bindings
    dtype: np.dtype[Any]
    empty: bool = False
    lanes: LifoQueue[Lane | None] = field(default_factory=closed_lanes)

    @property
    def device_bytes(self) -> int:
        """Most bytes it holds on its device: arena, constants and lanes; known before anything runs."""
        bound = self.bindings
        (source,), (result,) = bound.inputs, bound.outputs
        lanes = LANES * lane_bytes(tuple(source.shape), tuple(result.shape), self.dtype.itemsize)
        return bound.program.arena_bytes + bound.program.weight_bytes + lanes

    def run(self, pixels: Integers) -> tuple[Integers, bool]:
        (source,), (result,) = self.bindings.inputs, self.bindings.outputs
        check_pixels(pixels, (0, *source.shape[1:]) if self.empty else source.shape)
        if self.empty:
            return np.empty((0, *result.shape[1:]), self.dtype), True
        # A lane whose call fails is not used again: what it holds may still be on its way.
        lane, kept = self.lanes.get(), None
        try:
            with _on(self.bindings.device):
                lane = lane or self._opened()
                found = self._through(lane, pixels)
            kept = lane
        except (RuntimeError, MemoryError) as error:
            raise failure(NAME, error) from error
        finally:
            self.lanes.put(kept)
        return found

    def _opened(self) -> Lane:
        bound = self.bindings
        (source,), (result,) = bound.inputs, bound.outputs
        n, h, w, c = result.shape
        kind = torch.uint8 if self.dtype == np.uint8 else torch.uint16
        return open_lane(bound.streams, bound.device, tuple(source.shape), (n, h, w, c), kind)

    def _through(self, lane: Lane, pixels: Integers) -> tuple[Integers, bool]:
        bound = self.bindings
        streams = bound.streams
        np.copyto(lane.given.numpy(), pixels, casting="no")
        try:
            with streams.entered(lane.stream):
                lane.source.copy_(lane.given, non_blocking=True)
                with bound.turn():
                    _compute(bound, lane)
                lane.made.copy_(lane.result, non_blocking=True)
                lane.told.copy_(lane.flag, non_blocking=True)
                streams.record(lane.done)
            streams.finish(lane.done)
        except BaseException:
            # Nothing of this call may run on when its session, and with it the arena, is given up.
            with contextlib.suppress(RuntimeError):
                streams.drain(lane.stream)
            raise
        result = np.empty(tuple(lane.made.shape), self.dtype)
        np.copyto(result, lane.made.numpy(), casting="no")
        return result, not bool(lane.told.item())


def _compute(bound: Bindings, lane: Lane) -> None:
    """Enqueue the network on a lane's pixels, which go into the arena and come out of it."""
    (target,), (source,), kind = bound.inputs, bound.outputs, lane.source.dtype
    if target.dtype == kind:
        target.copy_(lane.source)
    else:
        image_load(lane.source, 1 / FULL_SCALE[kind], out=target)
    flag = lane.flag if bound.flag is None else bound.flag
    flag.zero_()
    bound.replay()
    if bound.flag is None:
        image_store(source, kind, out=lane.result, flag=flag)
    else:
        lane.result.copy_(source)
        lane.flag.copy_(flag)


def _run(calls: Sequence[Bound]) -> None:
    for call in calls:
        call.operation.run(call.reads, call.writes)


def _capture(calls: Sequence[Bound], device: torch.device) -> Any:
    """Run the calls once, so that every kernel is compiled, and record them."""
    with _CAPTURING, torch.cuda.device(device), exact_fp32():
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _run(calls)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate and wait meanwhile, as those do that run windows.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            _run(calls)
        torch.cuda.synchronize()
    return graph


@contextlib.contextmanager
def _on(device: torch.device) -> Any:
    """Make a device current, with fp32 that means fp32, and masked lanes of interpreted kernels silent."""
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    silent = np.errstate(all="ignore") if INTERPRETED else contextlib.nullcontext()
    with current, silent, exact_fp32():
        yield


def _physical(x: Tensor) -> Tensor:
    """View a tensor with the axes it has in memory: images NHWC, vectors as images of one pixel."""
    if x.ndim == 4:
        return x.permute(0, 2, 3, 1)
    return x[:, None, None] if x.ndim == 2 else x


def _flat(x: Tensor) -> Tensor:
    """View a value of other than four axes as one row of pixels; it is dense."""
    if x.ndim == 4:
        return x
    if x.numel() and not x.is_contiguous():
        raise BackendError(f"{NAME}: a value of the axes {list(x.shape)} is not dense; contiguous ones are accepted")
    return x.reshape(1, 1, 1, -1)
