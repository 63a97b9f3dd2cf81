"""Backends of known speed and fault, on a clock of their own: what the tests of measuring and choosing share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tilefuse import measurement, timing
from tilefuse.backends import registry
from tilefuse.backends.base import Precision, Session
from tilefuse.errors import BackendError
from tilefuse.graph import Shape
from tilefuse.model import Model
from tilefuse.source import load_model


@dataclass
class Clock:
    """A clock that stands still until a fake backend takes its time: no load on the machine changes a choice."""

    now: float = 0.0

    def advance(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds


CLOCK = Clock()


@dataclass(frozen=True)
class FakeSession:
    """The model in fp32 torch, later by `delay` and other by `error`; its first run takes `first[0]` times as long."""

    model: Model
    delay: float
    error: float
    first: list[float] = field(default_factory=list)

    def run(self, *inputs: Tensor) -> list[Tensor]:
        CLOCK.now += self.delay * (self.first.pop() if self.first else 1.0)
        assert self.model.graph is not None
        result = self.model.graph.evaluate(*inputs)[0].clone()
        result[..., :1, :1] += self.error
        return [result]


@dataclass(frozen=True)
class FakeBackend:
    """A backend with a speed and a fault."""

    name: str
    delay: float = 0.001
    error: float = 0.0
    compiled: tuple[list[Any], ...] = ([],)
    refuses: str = ""

    def available(self) -> str | None:
        return None

    def refusal(self, model: Model, device: str, precision: Precision) -> str | None:
        return None

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        if self.refuses:
            raise BackendError(self.refuses)
        self.compiled[0].append((shapes, precision))
        return FakeSession(model, self.delay, self.error)


@dataclass(frozen=True)
class Slow(FakeBackend):
    """A backend that takes its time to compile, and a time to run that grows with a power of the window's pixels."""

    compiling: float = 0.0
    a_pixel: float = 0.0
    power: float = 1.0
    first: float = 1.0

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        CLOCK.now += self.compiling
        session = super().compile(model, shapes, device=device, precision=precision, threads=threads)
        assert isinstance(session, FakeSession)
        delay = self.delay + self.a_pixel * prod(shapes[0][2:]) ** self.power
        return FakeSession(model, delay, self.error, [self.first])


def backends(monkeypatch: pytest.MonkeyPatch, *fakes: FakeBackend) -> None:
    """Put fakes in the place of all backends, and their clock in the place of the machine's."""
    CLOCK.now = 0.0
    monkeypatch.setattr(measurement, "time", SimpleNamespace(perf_counter=lambda: CLOCK.now))
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: CLOCK.now, sleep=CLOCK.advance))
    monkeypatch.setattr(registry, "BACKENDS", {fake.name: fake for fake in fakes})


def small_module() -> nn.Module:
    """A network that enlarges by two."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))


def small_model() -> Model:
    """The same, loaded."""
    return load_model(small_module())
