"""Launches as a GPU would get them, planned where there is none: what the ahead-of-time gate compiles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilefuse.kernels.launch import Launch


@dataclass(frozen=True)
class Planning:
    """What is planned for, a compute capability as 90, and the launches so far."""

    capability: int
    launches: list[Launch] = field(default_factory=list)


_CURRENT: ContextVar[Planning | None] = ContextVar("planning", default=None)


def current() -> Planning | None:
    """Give the planning that this thread is in, if it is in one."""
    return _CURRENT.get()


@contextmanager
def planning(capability: int) -> Iterator[list[Launch]]:
    """Collect the launches of the calls in the block that have tensors without memory (meta), as a GPU would get them.

    Nothing runs. Calls on tensors that have memory launch as ever.

    Args:
        capability: compute capability of the GPU, as 90.
    """
    planned = Planning(capability)
    token = _CURRENT.set(planned)
    try:
        yield planned.launches
    finally:
        _CURRENT.reset(token)
