"""The lines of an ncnn param file under construction."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tilefuse.graph import Node, Shape
from tilefuse.ops import Op

Value = int | float | list[int] | list[float]


class UnsupportedError(Exception):
    """ncnn can't do this exactly; the message says what."""


def require(condition: bool, reason: str) -> None:
    """Refuse unless the condition holds."""
    if not condition:
        raise UnsupportedError(reason)


@dataclass(frozen=True)
class Layer:
    """One line of the param text and its weights."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    params: Mapping[int, Value] = field(default_factory=dict)
    data: bytes = b""

    def text(self) -> str:
        """Write the parameters; an array under key k is stored under -23300 - k, its length first."""
        parts = []
        for key, value in self.params.items():
            if isinstance(value, list):
                parts.append(f"{-23300 - key}={','.join(map(_number, [len(value), *value]))}")
            else:
                parts.append(f"{key}={_number(value)}")
        return " ".join(parts)


def _number(value: float) -> str:
    # A float is told by its point, and at most 15 characters are read.
    return f"{value:.8e}" if isinstance(value, float) else str(int(value))


def raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().float().contiguous().numpy().tobytes()


def tagged(tensor: Tensor) -> bytes:
    """Weights that may be quantised carry a tag; 0 says plain float32."""
    return struct.pack("<I", 0) + raw(tensor)


Params = dict[int, Value]


@dataclass
class Sheet:
    """The layers written so far, and what their writers need to know: shapes (batch of 1 first) and constants."""

    shapes: Mapping[str, Shape]
    weights: Mapping[str, Tensor]
    layers: list[Layer] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def add(
        self, kind: str, inputs: tuple[str, ...], output: str, params: Params | None = None, data: bytes = b""
    ) -> None:
        """Write one layer."""
        self.layers.append(Layer(kind, inputs, output, params or {}, data))

    def fresh(self) -> str:
        """Name a value that the graph does not know."""
        return f"#{next(self.numbers)}"

    def constant(self, name: str, what: str) -> Tensor:
        """Look up an operand that ncnn wants at load time."""
        require(name in self.weights, f"the {what} is computed, not constant")
        return self.weights[name]

    def operand(self, name: str, rank: int) -> str:
        """Name a value to be read by an elementwise layer of that rank; a constant becomes a MemoryData layer."""
        shape = self.shapes[name]
        if name not in self.weights:
            require(len(shape) == rank, "the operands differ in rank")
            return name
        shape = (1,) * (rank - len(shape)) + tuple(shape)
        require(shape[0] == 1 and len(shape) == rank, "the constant has a batch axis")
        blob = self.fresh()
        self.add("MemoryData", (), blob, extent(shape[1:]), raw(self.weights[name]))
        return blob


def extent(shape: Shape) -> Params:
    """Parameters w, h, d, c of MemoryData and Reshape for a shape without its batch."""
    keys = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[len(shape)]
    return dict(zip(keys, shape, strict=True))


Writer = Callable[[Sheet, Node, str, Op | None], None]
