"""Lanes: what shares memory is in an order whatever the streams do, and copies lie beside the computing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.streams import Event, Handed, Traced, Watching, pointer, watch_host_copies
from tilefuse.backends.triton import lanes
from tilefuse.backends.triton.lanes import LANES, AtOnce, CudaStreams, lane_bytes, open_lane
from tilefuse.backends.triton.session import Bindings, TritonPixelSession, TritonSession
from tilefuse.backends.triton_fused import TritonFused
from tilefuse.capture import from_module
from tilefuse.errors import BackendError, DeviceError
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.model import Model

SHAPE = (1, 4, 6, 3)
CPU = torch.device("cpu")


class Doubling:
    """A graph that repeats every row of the arena's pixels, inverted, and sets the flag for pictures that begin so."""

    def __init__(self, streams: Traced, arena: torch.Tensor, ends: tuple[torch.Tensor, ...]) -> None:
        self.streams, self.arena, self.ends = streams, arena, ends
        self.before: Callable[[], None] = lambda: None

    def replay(self) -> None:
        self.before()
        source, result, flag = (end.numpy() for end in self.ends)
        self.streams.touch("replay", [], [pointer(self.arena)])
        result[:] = np.iinfo(source.dtype).max - source.repeat(2, 1)
        flag[:] = source.flat[0] == 7


def doubled(pixels: np.ndarray) -> tuple[np.ndarray, bool]:
    return np.iinfo(pixels.dtype).max - pixels.repeat(2, 1), pixels.flat[0] != 7


def session_of(streams: Traced, dtype: type = np.uint8) -> tuple[TritonPixelSession, Doubling]:
    """Make a session whose program is one call in an arena that all of its ends share."""
    kind, size = (torch.uint8 if dtype == np.uint8 else torch.uint16), 72 * np.dtype(dtype).itemsize
    arena = torch.zeros(4 * size, dtype=torch.uint8)
    source, result = arena[:size].view(kind).view(SHAPE), arena[size : 3 * size].view(kind).view(1, 8, 6, 3)
    flag = arena[3 * size : 3 * size + 4].view(torch.int32)
    graph = Doubling(streams, arena, (source, result, flag))
    streams.called(arena, "arena")
    program: Any = SimpleNamespace(arena_bytes=arena.numel(), weight_bytes=5, output_shapes=((1, 3, 8, 6),))
    bound = Bindings(program, CPU, (source,), (result,), (), flag, graph, streams, streams.event())
    return TritonPixelSession(bound, np.dtype(dtype), lanes=Handed(streams, LANES)), graph


def pictures(count: int, dtype: type = np.uint8) -> list[np.ndarray]:
    drawn = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (count, *SHAPE), dtype)
    drawn[::3, 0, 0, 0, 0] = 7
    return list(drawn)


def alike(found: list[tuple[np.ndarray, bool]], given: list[np.ndarray]) -> bool:
    wanted = [doubled(pixels) for pixels in given]
    return all(np.array_equal(f[0], w[0]) and f[1] == w[1] for f, w in zip(found, wanted, strict=True))


def test_a_call_touches_the_arena_in_its_turn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Traced()
    watch_host_copies(streams, monkeypatch)
    session, _ = session_of(streams)
    assert alike([session.run(pixels) for pixels in pictures(2)], pictures(2))
    expected = [
        *("host copy lane lane", "copy_ lane lane", "wait", "copy_ lane arena", "zero_ arena", "replay arena"),
        *("copy_ arena lane", "copy_ arena lane", "record", "copy_ lane lane", "copy_ lane lane", "record", "finish"),
        "host copy lane lane",
    ]
    assert streams.log == expected * 2
    assert streams.opened == 1
    assert not streams.races


@pytest.mark.parametrize("callers", [2, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_threads_get_the_pixels_of_serial_calls_and_leave_nothing_unordered(
    callers: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, given = Traced(), pictures(40, dtype)
    watch_host_copies(streams, monkeypatch)
    session, _ = session_of(streams, dtype)
    with ThreadPoolExecutor(callers) as pool:
        found = list(pool.map(session.run, given))
    assert alike(found, given)
    assert streams.races == []
    assert streams.opened <= LANES
    assert not any(np.shares_memory(a[0], b[0]) for a, b in pairwise(found))


def overlapping(session: TritonPixelSession, graph: Doubling, streams: Traced) -> list[tuple[np.ndarray, bool]]:
    """Let two callers go through at once: while one has the arena, the other one's copies are enqueued."""
    uploaded, downloaded, first = threading.Event(), threading.Event(), list[int]()
    touch, record = streams.touch, streams.record

    def touched(what: str, *uses: Any, **here: Any) -> None:
        touch(what, *uses, **here)
        if first and threading.get_ident() != first[0]:
            uploaded.set()

    def recorded(event: Event) -> None:
        record(event)
        if event is not session.bindings.used:
            downloaded.set()

    def before() -> None:
        if not first:
            first.append(threading.get_ident())
            assert uploaded.wait(20), "the copy up waits for the arena that another caller has"
        else:
            assert downloaded.wait(20), "the copies down wait for the arena that the next caller has"

    streams.touch, streams.record, graph.before = touched, recorded, before  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(session.run, pictures(2)))


def test_copies_go_on_while_another_caller_has_the_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Traced()
    watch_host_copies(streams, monkeypatch)
    session, graph = session_of(streams)
    assert alike(overlapping(session, graph, streams), pictures(2))
    assert streams.opened == 2
    assert streams.races == []


class NeverWaits(Traced):
    def wait(self, event: Event) -> None:
        pass


class NeverMarks(Traced):
    def record(self, event: Event) -> None:
        pass


class NeverFinishes(Traced):
    def finish(self, event: Event) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "what"),
    [(NeverWaits, "replay"), (NeverMarks, "replay"), (NeverMarks, "host copy"), (NeverFinishes, "host copy")],
)
def test_the_stand_in_finds_a_rule_that_is_broken(
    kind: type[Traced], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = kind()
    watch_host_copies(streams, monkeypatch)
    session, graph = session_of(streams)
    barrier = threading.Barrier(2, timeout=20)
    with ThreadPoolExecutor(2) as pool:

        def call(pixels: np.ndarray) -> object:
            barrier.wait()
            return [session.run(pixels) for _ in range(5)]

        # Both lanes are used: the second caller comes while the first one has a lane.
        graph.before = lambda: threading.Event().wait(0.005) and None
        list(pool.map(call, pictures(2)))
    assert any(race.startswith(what) for race in streams.races)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), DeviceError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_lane_whose_call_failed_is_drained_and_not_used_again(
    error: BaseException, kind: type[BaseException]
) -> None:
    streams = Traced()
    session, graph = session_of(streams)
    session.run(pictures(1)[0])

    def fail() -> None:
        raise error

    for failed in range(1, 4):
        graph.before = fail
        with pytest.raises(kind):
            session.run(pictures(1)[0])
        graph.before = lambda: None
        assert alike([session.run(pictures(1)[0])], pictures(1))
        assert streams.drained == [f"stream {n}" for n in range(1, failed + 1)]
        assert streams.opened == failed + 1
    # As many callers as before are served at once.
    assert alike(overlapping(session, graph, streams), pictures(2))
    assert streams.races == []


def test_a_device_that_is_gone_does_not_hide_what_went_wrong() -> None:
    class Gone(Traced):
        def drain(self, stream: str) -> None:
            raise torch.AcceleratorError("CUDA error: the context is destroyed")

    streams = Gone()
    session, graph = session_of(streams)

    def fail() -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    graph.before = fail
    with pytest.raises(DeviceError, match="triton_fused failed while running: CUDA error: unspecified launch failure"):
        session.run(pictures(1)[0])


def test_lanes_that_do_not_fit_are_memory_that_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = session_of(Traced())
    opened = session.lanes.qsize()

    def full(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("tilefuse.backends.triton.session.open_lane", full)
    for _ in range(3):
        with pytest.raises(MemoryError, match="triton_fused ran out of memory: CUDA out of memory"):
            session.run(pictures(1)[0])
    assert session.lanes.qsize() == opened == LANES


def test_floats_take_their_turn_beside_lanes() -> None:
    streams = Traced()
    arena = torch.zeros(4 * 64, dtype=torch.uint8)
    source = arena[: 4 * 24].view(torch.float32).view(1, 2, 4, 3)
    streams.called(arena, "arena")
    pixels, graph = session_of(streams)
    graph.arena = arena
    program: Any = SimpleNamespace(output_shapes=((1, 3, 2, 4),))
    replayed = SimpleNamespace(replay=lambda: streams.touch("replay", [], [pointer(arena)]))
    shared = Bindings(program, CPU, (source,), (source,), (), None, replayed, streams, pixels.bindings.used)
    session = TritonSession(shared, ((1, 3, 2, 4),))
    x = torch.rand(1, 3, 2, 4)
    # Another thread's pixels were in this arena just before, and will be just after.
    pixels.run(pictures(1)[0])
    with Watching(streams):
        (result,) = session.run(x)
    pixels.run(pictures(1)[0])
    assert torch.equal(result, x)
    assert streams.races == []
    turn = [line for line in streams.log if line in ("wait", "record", "finish") or "arena" in line][8:]
    assert turn[:6] == ["finish", "wait", "image_load lane arena", "replay arena", "image_load arena lane", "record"]
    assert turn[6:9] == ["record", "finish", "wait"]


def test_the_memory_of_lanes_is_told_before_anything_runs() -> None:
    for dtype, kind in ((np.uint8, torch.uint8), (np.uint16, torch.uint16)):
        session, _ = session_of(Traced(), dtype)
        itemsize = np.dtype(dtype).itemsize
        lane = open_lane(AtOnce(), CPU, SHAPE, (1, 8, 6, 3), kind)
        on_device = lane.source.untyped_storage().nbytes() + lane.result.untyped_storage().nbytes()
        assert on_device == lane_bytes(SHAPE, (1, 8, 6, 3), itemsize) == (72 + 144) * itemsize
        assert session.device_bytes == 4 * 72 * itemsize + 5 + LANES * on_device


def test_cuda_streams_are_none_that_graphs_are_captured_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of stand-ins: nothing here runs on a GPU."""
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda *given, **named: asked.append((given, named)))
    monkeypatch.setattr(torch.cuda, "Event", lambda **named: asked.append(named))
    monkeypatch.setattr(lanes.torch, "empty", lambda shape, dtype, pin_memory: asked.append((shape, dtype, pin_memory)))
    streams = CudaStreams(torch.device("cuda", 1))
    streams.stream()
    streams.event()
    streams.host((1, 2), torch.uint16)
    assert asked == [
        ((torch.device("cuda", 1),), {"priority": -1}),
        {"blocking": True},
        ((1, 2), torch.uint16, True),
    ]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")
def test_kernels_serve_several_threads_and_no_images() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        graph = from_module(ESPCN(2, features=(4, 4)).eval(), torch.rand(1, 3, 4, 5))
    model, kind = Model("espcn", "0", graph=graph), np.dtype(np.uint8)
    session, none = (
        TritonFused().compile_pixels(model, (count, 3, 4, 5), kind, device="cpu", precision="fp32", threads=1)
        for count in (1, 0)
    )
    given = list(np.random.default_rng(0).integers(0, 256, (3, 1, 4, 5, 3), np.uint8))
    serial = [session.run(pixels)[0] for pixels in given]
    with ThreadPoolExecutor(3) as pool:
        together = [made for made, _ in pool.map(session.run, given)]
    assert all(np.array_equal(a, b) for a, b in zip(serial, together, strict=True))
    made, finite = none.run(given[0][:0])
    assert (made.shape, made.dtype, finite) == ((0, 8, 10, 3), kind, True)
    with pytest.raises(BackendError, match=r"compiled for pixels of \[0, 4, 5, 3\]"):
        none.run(given[0])
