"""The protocol every backend serves: compile a model for one window shape, then run windows of that shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor

from tilefuse.graph import Shape
from tilefuse.model import Model

Precision = Literal["fp32", "bf16", "fp16"]


class Session(Protocol):
    """A model compiled for fixed input shapes. Safe to run from many threads at once."""

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """Run float32 tensors of the compiled shapes and return float32 outputs that the caller owns.

        Raises:
            DeviceError: the library failed while running.
            MemoryError: memory ran out; the caller may retry with a smaller window.
        """
        ...


class Backend(Protocol):
    """One library that can run a model."""

    name: str

    def available(self) -> str | None:
        """Give the reason this backend can't serve on this machine, or None when it can."""
        ...

    def refusal(self, model: Model, device: str, precision: Precision) -> str | None:
        """Give the reason this backend can't serve this model so, or None when it can."""
        ...

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        """Compile for the given input shapes.

        Raises:
            BackendError: the backend can't serve this model so; the message is the reason.
        """
        ...
