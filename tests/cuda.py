"""A stand-in for a CUDA device: torch says there is one, and a backend computes on the processor in its place."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tilefuse import selection
from tilefuse.backends import registry
from tilefuse.backends.base import Precision, Session
from tilefuse.backends.torch_eager import TorchEager, TorchSession
from tilefuse.graph import Shape
from tilefuse.model import Model

GIB = 1 << 30


class Arena:
    """Device memory that a session holds; who looks knows whether it is gone."""


@dataclass(eq=False)
class Device:
    """Memory and faults. `fail(run, shape)` may raise in a run; `runs` and `compiled` are the windows in order."""

    free: int = 10 * GIB
    fail: Callable[[int, Shape], None] = lambda _, __: None
    refuse: Callable[[Shape], None] = lambda _: None
    runs: list[Shape] = field(default_factory=list)
    compiled: list[Shape] = field(default_factory=list)
    emptied: int = 0
    arenas: list[weakref.ref[Arena]] = field(default_factory=list)
    # How many arenas were there, the ones that did not fit included, when memory was given back.
    held_when_emptied: list[int] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def held(self) -> int:
        """Count the arenas that something still refers to; nothing but references frees device memory."""
        return sum(arena() is not None for arena in self.arenas)

    def empty_cache(self) -> None:
        """Note what torch could not give back."""
        self.emptied += 1
        self.held_when_emptied.append(self.held())


@dataclass(frozen=True)
class StandIn:
    """The torch backend, said to run on a GPU: its sessions have an arena, and fail as the device says."""

    device: Device
    name: str = "gpu"

    def available(self) -> str | None:
        return None

    def refusal(self, model: Model, device: str, precision: Precision) -> str | None:
        return None

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        arena = Arena()
        self.device.arenas.append(weakref.ref(arena))
        self.device.compiled.append(tuple(shapes[0]))
        self.device.refuse(tuple(shapes[0]))
        on_cpu = TorchEager().compile(model, shapes, device="cpu", precision=precision, threads=1)
        assert isinstance(on_cpu, TorchSession)

        def call(*inputs: Tensor) -> object:
            kept = arena  # as a frame of a real session keeps its tensors
            with self.device.lock:
                run = len(self.device.runs)
                self.device.runs.append(tuple(inputs[0].shape))
            self.device.fail(run, tuple(inputs[0].shape))
            assert kept
            return on_cpu.call(*inputs)

        return TorchSession(self.name, call, on_cpu.shapes, "cpu", on_cpu.dtype, on_cpu.constants, on_cpu.layout)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a stand-in in the place of all devices and backends."""
    made = Device()
    for name, value in {
        "is_available": lambda: True,
        "mem_get_info": lambda _=None: (made.free, 16 * GIB),
        "memory_reserved": lambda _=None: 0,
        "memory_allocated": lambda _=None: 0,
        "empty_cache": made.empty_cache,
        "get_device_name": lambda _=None: "a stand-in",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(registry, "BACKENDS", {"gpu": StandIn(made)})
    monkeypatch.setattr(registry, "_CUDA_FIRST", ("gpu",))
    selection._device_name.cache_clear()
    # What counts are references: nothing here may wait for the collector.
    gc.disable()
    yield made
    gc.enable()
    selection._device_name.cache_clear()


def random_image(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Draw an 8-bit image."""
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
