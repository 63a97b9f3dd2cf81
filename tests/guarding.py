"""A sanitiser of kernels in Triton's interpreter: addresses outside of a launch's tensors, races between its programs.

The interpreter runs programs one after the other in the memory of this process, where a load past the end of a tensor
or two programs on one scratch go unnoticed. Here every address is looked up in the tensors that a launch was given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from triton.runtime.interpreter import interpreter_builder

from tilefuse.kernels.launch import Launch

Addresses = NDArray[np.uint64]
# Arguments that a kernel may write, by the beginnings of their names.
WRITTEN = ("out", "scratch", "flag", "y_desc")


@dataclass
class Region:
    """A tensor that a launch may write: which program wrote each byte, and what was done since the last barrier."""

    name: str
    low: int
    owner: NDArray[np.int64]
    new: NDArray[np.bool_]
    read: NDArray[np.bool_]

    def find(self, addresses: Addresses) -> NDArray[np.int64]:
        """Give the bytes of addresses that lie in it."""
        inside = (addresses >= self.low) & (addresses < self.low + len(self.owner))
        return (addresses[inside] - np.uint64(self.low)).astype(np.int64)


@dataclass
class Guard:
    """What the programs of a launch have touched."""

    launch: Launch
    program: int = -1
    regions: list[Region] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, low, high in self.spans(*WRITTEN):
            size = high - low
            none = np.full(size, -1), np.zeros(size, bool), np.zeros(size, bool)
            # One word may be told of by any program.
            if not name.startswith("flag"):
                self.regions.append(Region(name, low, *none))

    def spans(self, *beginnings: str) -> list[tuple[str, int, int]]:
        """First byte of each tensor among the arguments, or of those whose names begin so, and the one past it."""
        found = []
        for name, value in self.launch.arguments.items():
            tensor = value if isinstance(value, torch.Tensor) else getattr(value, "base", None)
            if isinstance(tensor, torch.Tensor) and tensor.numel() and name.startswith(beginnings or ("",)):
                last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
                found.append((name, tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()))
        return found

    def load(self, addresses: Addresses, size: int) -> None:
        """Check what a program reads; in scratch, that it has written it itself, and not since its last barrier."""
        self._inside(addresses, size, self.spans(), "reads")
        program = self._now()
        for region in filter(self._is_scratch, self.regions):
            place = region.find(addresses)
            assert (region.owner[place] == program).all(), f"{self.launch.name} reads scratch that is not its own"
            assert not region.new[place].any(), f"{self.launch.name} reads scratch before a barrier"
            region.read[place] = True

    def store(self, addresses: Addresses, size: int) -> None:
        """Check what a program writes: once, unless it is its own scratch, and that not while it is read."""
        self._inside(addresses, size, self.spans(*WRITTEN), "writes")
        program = self._now()
        for region in self.regions:
            place = region.find(addresses)
            owned = (-1, program) if self._is_scratch(region) else (-1,)
            once = np.isin(region.owner[place], owned).all() and len(np.unique(place)) == len(place)
            assert once, f"{self.launch.name} writes a place of {region.name} twice"
            assert not region.read[place].any(), f"{self.launch.name} writes scratch that it reads, before a barrier"
            region.owner[place] = program
            region.new[place] = True

    def barrier(self) -> None:
        """Let a program's threads see what the others have done."""
        for region in self.regions:
            region.new[:] = region.read[:] = False

    def _now(self) -> int:
        """Number the program that runs; a new one begins as behind a barrier."""
        x, y, z = interpreter_builder.grid_idx
        program = x + (y << 20) + (z << 40)
        if program != self.program:
            self.program = program
            self.barrier()
        return program

    def _is_scratch(self, region: Region) -> bool:
        # The statistics of a norm are written by one launch and read by the next.
        return region.name.startswith("scratch") and self.launch.name.startswith("chain")

    def _inside(self, addresses: Addresses, size: int, spans: list[tuple[str, int, int]], verb: str) -> None:
        inside = np.zeros(addresses.shape, bool)
        for _, low, high in spans:
            inside |= (addresses >= low) & (addresses + np.uint64(size) <= high)
        outside = int((~inside).sum())
        assert not outside, f"{self.launch.name} {verb} {outside} places outside of its tensors"


@contextmanager
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Check every launch within; gives the names of those that were."""
    builder, launched, guards = type(interpreter_builder), list[str](), list[Guard]()
    load, store, run = builder.create_masked_load, builder.create_masked_store, Launch.run

    def touched(pointers: object, mask: object) -> Addresses:
        addresses = np.asarray(pointers.data)  # type: ignore[attr-defined]
        return addresses[np.broadcast_to(np.asarray(mask.data, bool), addresses.shape)]  # type: ignore[attr-defined]

    def size_of(pointers: object) -> int:
        return max(pointers.get_element_ty().primitive_bitwidth // 8, 1)  # type: ignore[attr-defined]

    def guarded_load(self, pointers, mask, *rest, **named):  # type: ignore[no-untyped-def]
        guards[-1].load(touched(pointers, mask), size_of(pointers))
        return load(self, pointers, mask, *rest, **named)

    def guarded_store(self, pointers, value, mask, *rest, **named):  # type: ignore[no-untyped-def]
        guards[-1].store(touched(pointers, mask), size_of(pointers))
        return store(self, pointers, value, mask, *rest, **named)

    def guarded_run(self: Launch) -> None:
        guards.append(Guard(self))
        run(self)
        launched.append(self.name)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "create_masked_load", guarded_load)
        patch.setattr(builder, "create_masked_store", guarded_store)
        patch.setattr(builder, "create_barrier", lambda _: guards[-1].barrier())
        patch.setattr(Launch, "run", guarded_run)
        yield launched
