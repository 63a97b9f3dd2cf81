"""Where values lie and what runs on them: the flat list of calls a graph is lowered to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import prod
from typing import Any, Self, cast

import torch
from torch import Tensor

from tilefuse.graph import Shape
from tilefuse.kernels.chain import Chain
from tilefuse.kernels.layer import Layer


@dataclass(frozen=True)
class Place:
    """A view of a buffer, in elements: [N, H, W, C] for images, [N, 1, 1, C] for vectors, else the value's own axes."""

    buffer: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    def narrowed(self, axis: int, start: int, length: int, step: int = 1) -> Place:
        """View every `step`-th of `length` positions of an axis, from `start` on."""
        shape, strides = [*self.shape], [*self.strides]
        shape[axis], strides[axis] = length, strides[axis] * step
        return replace(
            self, shape=tuple(shape), strides=tuple(strides), offset=self.offset + start * self.strides[axis]
        )

    def viewed(self, shape: Shape, strides: Shape) -> Place:
        """View the same first element with other axes."""
        return replace(self, shape=shape, strides=strides)

    @property
    def is_dense(self) -> bool:
        """Tell whether the elements lie one after the other in the order of the axes."""
        return all(
            size == 1 or stride == dense
            for size, stride, dense in zip(self.shape, self.strides, dense_strides(self.shape), strict=True)
        )


@dataclass(frozen=True)
class Buffer:
    """Memory of one or more values."""

    name: str
    elements: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size."""
        return self.elements * self.dtype.itemsize


class Operation(ABC):
    """What a call does, with its constants: a frozen dataclass."""

    @abstractmethod
    def run(self, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """Launch it on the current stream."""

    def to(self, device: torch.device | str) -> Self:
        """Copy the constants to a device."""
        moved = {each.name: _moved(getattr(self, each.name), device) for each in fields(cast(Any, self))}
        return cast(Self, replace(cast(Any, self), **moved))


@dataclass(frozen=True, eq=False)
class Call:
    """One entry of the list: a kernel (or `torch.<op>`), the value it makes, and the places it reads and writes."""

    kernel: str
    value: str
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]
    operation: Operation = field(repr=False)

    @property
    def uses_torch(self) -> bool:
        """Tell whether torch runs it, for want of a kernel."""
        return self.kernel.startswith("torch.")


@dataclass(frozen=True, eq=False)
class Program:
    """A graph lowered for fixed shapes.

    Attributes:
        inputs, outputs: places of the graph's inputs and outputs.
        output_shapes: as the graph has them.
        offsets: first byte of every buffer in the arena.
        arena_bytes: the arena's size, which is the peak of all activations together.
        weight_bytes: size of all constants as packed.
        flag: int32 [1] that a call sets behind values that are not finite; None where no call does.
    """

    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    output_shapes: tuple[Shape, ...]
    calls: tuple[Call, ...]
    buffers: Mapping[str, Buffer]
    offsets: Mapping[str, int]
    arena_bytes: int
    weight_bytes: int
    flag: Place | None = None

    @property
    def torch_ops(self) -> tuple[str, ...]:
        """Ops that no kernel serves, with the values they make."""
        return tuple(f"{call.kernel.removeprefix('torch.')} ({call.value})" for call in self.calls if call.uses_torch)


def dense_strides(shape: Sequence[int]) -> Shape:
    """Steps of the axes of a dense tensor."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def constant_bytes(value: Any) -> int:
    """Bytes of the tensors in an operation, a layer or a tuple of them."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Layer | Chain | Operation):
        return sum(constant_bytes(getattr(value, each.name)) for each in fields(cast(Any, value)))
    if isinstance(value, tuple | list):
        return sum(map(constant_bytes, value))
    return 0


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor | Layer | Chain):
        return value.to(device)
    return tuple(_moved(each, device) for each in value) if isinstance(value, tuple) else value
