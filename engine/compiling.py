"""Compiled sessions of a loaded model, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tilefuse.backends import registry
from tilefuse.backends.base import Precision, Session
from tilefuse.backends.pixels import PixelSession, compile_pixels
from tilefuse.machine import available_memory, cpu_threads
from tilefuse.model import Model
from tilefuse.planner import input_shapes
from tilefuse.sessions import SessionCache


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
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0] * 4 // 5
    return available_memory() // 2


def session_cache(model: Model, device: str) -> SessionCache[SessionKey]:
    """Give a cache that compiles `model` for a device as it is asked to."""

    def compile_session(key: SessionKey) -> Session | PixelSession:
        if model.graph is not None:
            shapes = input_shapes(model.graph, key.images, key.window)
        else:
            shapes = ((key.images, model.image_channels[0], *key.window),)
        backend, threads = registry.get(key.backend), key.threads or cpu_threads()
        if key.dtype == "float32":
            return backend.compile(model, shapes, device=device, precision=key.precision, threads=threads)
        dtype = np.dtype(key.dtype)
        return compile_pixels(backend, model, shapes[0], dtype, device=device, precision=key.precision, threads=threads)

    return SessionCache(compile_session)
