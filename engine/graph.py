"""The graph: an immutable, validated, printable list of ops over named values, runnable in plain torch.

A value is an input, a weight or a node's output. `Graph.evaluate` is the reference every importer, pass and backend is
compared with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor

from tilefuse.errors import ModelError
from tilefuse.ops import Op

Shape = tuple[int, ...]
Kind = tuple[Shape, torch.dtype]


@dataclass(frozen=True)
class Input:
    """A graph input; None marks a size known only at run time (batch, height, width)."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Node:
    """One op, the names of the values it reads, and the name of the value it makes."""

    op: Op
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, eq=False)
class Graph:
    """Ops in order of execution, with their weights.

    Raises:
        ModelError: a name is defined twice, or read before it is defined.
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))
        defined: set[str] = set()
        for name in (*(i.name for i in self.inputs), *self.weights):
            if name in defined:
                raise ModelError(f"graph: the value {name!r} is defined twice")
            defined.add(name)
        for node in self.nodes:
            for name in node.inputs:
                if name not in defined:
                    raise ModelError(f"graph: {node.op.name} reads {name!r}, which nothing before it defines")
            if node.output in defined:
                raise ModelError(f"graph: the value {node.output!r} is defined twice")
            defined.add(node.output)
        for name in self.outputs:
            if name not in defined:
                raise ModelError(f"graph: the output {name!r} is defined by no node")

    def __reduce__(self) -> tuple[type[Graph], tuple[object, ...]]:
        # For workers of other processes: the read-only view of the weights can't be sent.
        return Graph, (self.inputs, self.nodes, self.outputs, dict(self.weights))

    def evaluate(self, *inputs: Tensor) -> list[Tensor]:
        """Run the graph in plain torch and return its outputs; a value is freed after its last use.

        Raises:
            ModelError: the number of inputs, their rank or a fixed size is not the graph's.
        """
        self._check(inputs)
        values = dict(zip((i.name for i in self.inputs), inputs, strict=True))
        last_use = self.last_use()
        with torch.no_grad():
            for position, node in enumerate(self.nodes):
                values[node.output] = node.op.apply(*(self._value(values, name) for name in node.inputs))
                for name in (*node.inputs, node.output):
                    if last_use.get(name, -1) <= position and name not in self.outputs:
                        values.pop(name, None)
        return [self._value(values, name) for name in self.outputs]

    def _value(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        return self.weights[name] if name in self.weights else values[name]

    def _check(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self.inputs):
            raise ModelError(f"the model takes {len(self.inputs)} inputs; {len(inputs)} were given")
        for spec, tensor in zip(self.inputs, inputs, strict=True):
            given = tuple(tensor.shape)
            if len(given) != len(spec.shape) or any(
                want is not None and want != got for want, got in zip(spec.shape, given, strict=True)
            ):
                wanted = "x".join("?" if size is None else str(size) for size in spec.shape)
                raise ModelError(f"input {spec.name!r} must be {wanted}; {'x'.join(map(str, given))} was given")

    def last_use(self) -> dict[str, int]:
        """Position of the last node that reads each value."""
        return {name: position for position, node in enumerate(self.nodes) for name in node.inputs}

    def shapes(self, *inputs: Shape) -> dict[str, Shape]:
        """Infer the shape of every value for the given input shapes, without computing.

        Raises:
            ModelError: an op can't take the size that reaches it (an image smaller than a reflection pad, say).
        """
        values: dict[str, Kind] = {
            spec.name: (tuple(shape), torch.float32) for spec, shape in zip(self.inputs, inputs, strict=True)
        }
        values |= {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self.weights.items()}
        for node in self.nodes:
            try:
                values[node.output] = _inferred(node.op, tuple(values[name] for name in node.inputs))
            except (RuntimeError, IndexError, ValueError) as error:
                reason = str(error).splitlines()[0]
                given = ", ".join("x".join(map(str, shape)) for shape in inputs)
                raise ModelError(f"{node.op.name} ({node.output}) can't take an input of {given}: {reason}") from error
            if 0 in values[node.output][0]:
                raise ModelError(f"{node.op.name} ({node.output}) gives an empty result")
        return {name: shape for name, (shape, _) in values.items()}

    def consumers(self) -> dict[str, list[Node]]:
        """Nodes that read each value, in order."""
        table: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                table.setdefault(name, []).append(node)
        return table

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Graph:
        """Convert the weights."""
        return replace(self, weights={k: v.to(device=device, dtype=dtype) for k, v in self.weights.items()})

    def fingerprint(self) -> str:
        """SHA-256 over structure and weights: equal graphs, equal results."""
        digest = hashlib.sha256()
        for line in self._lines():
            digest.update(line.encode())
        for name, tensor in self.weights.items():
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _lines(self) -> Iterator[str]:
        for spec in self.inputs:
            yield f"{spec.name}: input [{', '.join('?' if s is None else str(s) for s in spec.shape)}]"
        for node in self.nodes:
            yield f"{node.output} = {node.op}({', '.join(self._show(name) for name in node.inputs)})"
        yield f"return {', '.join(self.outputs)}"

    def _show(self, name: str) -> str:
        if name not in self.weights:
            return name
        tensor = self.weights[name]
        return f"{tensor.item():g}" if tensor.ndim == 0 else f"{name}{list(tensor.shape)}"

    def __str__(self) -> str:
        return "\n".join(self._lines())


# An image is planned for a dozen windows and networks repeat their blocks, while tracing one op takes 0.2 ms.
@lru_cache(maxsize=16384)
def _inferred(op: Op, operands: tuple[Kind, ...]) -> Kind:
    """Trace an op without computing: the shape and the type of its result."""
    result = op.apply(*(torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in operands))
    return tuple(result.shape), result.dtype
