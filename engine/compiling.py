"""Compiled sessions of a loaded model, by what they are for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock

import numpy as np

from tilefuse.backends import registry
from tilefuse.backends.base import Precision, Session
from tilefuse.backends.pixels import PixelSession, compile_pixels
from tilefuse.cost import cost_of
from tilefuse.errors import CapacityError
from tilefuse.graph import Shape
from tilefuse.machine import available_memory, cpu_threads, format_bytes, free_memory, release_device_memory
from tilefuse.model import Model
from tilefuse.planner import assumed_factor, input_shapes
from tilefuse.sessions import Room, SessionCache


@dataclass(frozen=True)
class SessionKey:
    """What a compiled session is for: `threads` of one run (0: all), and float32 tensors or integer pixels."""

    backend: str
    images: int
    window: tuple[int, int]
    precision: Precision
    threads: int = 0
    dtype: str = "float32"


def memory_budget(device: str) -> int:
    """Return what a job may take where nobody says: 80 % of the free memory of a GPU, half of what is free in RAM."""
    return free_memory(device) * 4 // 5 if device.startswith("cuda") else free_memory(device) // 2


def check_held(image_bytes: int, device: str) -> None:
    """Refuse images and results that this machine has no memory for, where the budget is another device's.

    Raises:
        CapacityError: they don't fit what is free.
    """
    free = available_memory()
    if not device.startswith("cpu") and image_bytes > free:
        raise CapacityError(
            f"the image and its result take {format_bytes(image_bytes)} of this machine's memory, {format_bytes(free)} "
            f"are free, and what {device} has is no help. Run it from a file into a file, which needs neither whole"
        )


class Budget:
    """The memory that a job of one engine may take: `asked`, or what `memory_budget` says where that is 0.

    A GPU's is looked up once: the arenas that an engine keeps there would count as taken by others the next time, and
    the same image would be cut into ever smaller windows.
    """

    def __init__(self, device: str, asked: int = 0) -> None:
        self._device = device
        self._fixed = asked
        self._lock = RLock()

    def __call__(self) -> int:
        if not self._device.startswith("cuda"):
            return self._fixed or memory_budget(self._device)
        with self._lock:
            self._fixed = self._fixed or memory_budget(self._device)
            return self._fixed


def session_cache(model: Model, device: str, budget: Callable[[], int]) -> SessionCache[SessionKey]:
    """Give a cache that compiles `model` for a device as it is asked to, and on a GPU keeps what fits the budget."""

    def shapes_of(key: SessionKey) -> tuple[Shape, ...]:
        if model.graph is not None:
            return input_shapes(model.graph, key.images, key.window)
        return ((key.images, model.image_channels[0], *key.window),)

    def held_bytes(key: SessionKey) -> int:
        if model.graph is None:
            return 0
        cost = cost_of(model.graph, shapes_of(key))
        return int(assumed_factor(key.backend) * cost.live_bytes) + cost.weight_bytes

    def compile_session(key: SessionKey) -> Session | PixelSession:
        shapes = shapes_of(key)
        # A choice that was made before a fork may ask for more threads than there are now.
        backend, threads = registry.get(key.backend), min(key.threads or cpu_threads(), cpu_threads())
        if key.dtype == "float32":
            return backend.compile(model, shapes, device=device, precision=key.precision, threads=threads)
        dtype = np.dtype(key.dtype)
        return compile_pixels(backend, model, shapes[0], dtype, device=device, precision=key.precision, threads=threads)

    if not device.startswith("cuda"):
        return SessionCache(compile_session)
    return SessionCache(compile_session, room=Room(held_bytes, budget, release_device_memory))
