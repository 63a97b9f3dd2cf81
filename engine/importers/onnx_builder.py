"""The graph under construction while an ONNX model is read, and the values in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tilefuse.errors import ModelError
from tilefuse.graph import Node
from tilefuse.importers.onnx_shapes import Dims, element_count, infer
from tilefuse.importers.onnx_views import Layout, recognise, whole
from tilefuse.ops import Binary, Concat, Op, Slice

MAX_CONSTANT_BYTES = 2**31
MAX_CHANNEL_RUNS = 256


@dataclass(frozen=True)
class Tensor:
    """A value known at run time only."""

    name: str
    shape: Dims


@dataclass(frozen=True, eq=False)
class Grid:
    """What a dequantised constant was: whole numbers, zero point taken off, and a scale, or one a slice."""

    levels: NDArray[Any]
    scale: NDArray[Any]
    axis: int


@dataclass(frozen=True, eq=False)
class Constant:
    """A value known now; dtype object where a number depends on the image's size."""

    name: str
    array: NDArray[Any]
    grid: Grid | None = None

    @property
    def shape(self) -> Dims:
        """Sizes of the constant."""
        return tuple(self.array.shape)


@dataclass(frozen=True)
class View:
    """A rearranged tensor that no op has needed yet. `label` names the ONNX node to blame if none can make it."""

    name: str
    base: Tensor
    layout: Layout
    label: str

    @property
    def shape(self) -> Dims:
        """Sizes of the view."""
        return self.layout.shape


@dataclass(frozen=True)
class Above:
    """The comparison x > threshold, which exporters write around Softplus."""

    x: Tensor
    threshold: float
    shape: Dims = ()


@dataclass(frozen=True, eq=False)
class Levels:
    """The integers QuantizeLinear gives, `zero` taken off: whole numbers of at most `peak`."""

    base: Tensor
    zero: int
    peak: int

    @property
    def shape(self) -> Dims:
        """Sizes of the integers."""
        return self.base.shape


@dataclass(frozen=True, eq=False)
class Scaled:
    """Whole numbers of at most `peak` times `scale`, one number or one a channel: a product nothing has needed yet."""

    name: str
    base: Tensor
    scale: NDArray[Any]
    peak: int

    @property
    def shape(self) -> Dims:
        """Sizes of the value."""
        return self.base.shape


@dataclass(frozen=True)
class Unsupported:
    """An output that may not be read, and why."""

    reason: str
    shape: Dims = ()


Value = Tensor | Constant | View | Above | Levels | Scaled | Unsupported


@dataclass(frozen=True)
class Builder:
    """The graph so far. Grows while a model is read, and is dropped afterwards."""

    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    made: dict[View | Scaled, Tensor] = field(default_factory=dict)
    spent: list[int] = field(default_factory=lambda: [0])

    def spend(self, elements: object, itemsize: int = 4) -> None:
        """Count the memory of computed constants.

        Raises:
            ModelError: there are too many for a model that means well.
        """
        if isinstance(elements, int):
            self.spent[0] += elements * itemsize
        if self.spent[0] > MAX_CONSTANT_BYTES:
            raise ModelError(f"the model's constants unfold to more than {MAX_CONSTANT_BYTES} bytes")

    def unique(self, wanted: str) -> str:
        """Take a name nothing else has."""
        name, count = wanted, 0
        while name in self.names:
            count += 1
            name = f"{wanted}.{count}"
        self.names.add(name)
        return name

    def settle(self, value: Value, name: str, since: int) -> Value:
        """Give the value made by the last node its ONNX name, if that node is younger than the first `since`."""
        if not isinstance(value, Tensor) or len(self.nodes) <= since or self.nodes[-1].output != value.name:
            return value
        if value in self.made.values():
            return value
        self.nodes[-1] = replace(self.nodes[-1], output=name)
        return replace(value, name=name)

    def add(self, op: Op, inputs: Sequence[Value], name: str) -> Tensor | Constant:
        """Append an op; on constants alone it is run at once."""
        tensors = [self.tensor(value) if not isinstance(value, Constant) else value for value in inputs]
        try:
            shape = infer(op, [value.shape for value in tensors])
        except ValueError as error:
            raise ModelError(f"{op.name} ({name}): {error}") from error
        if all(isinstance(value, Constant) for value in tensors):
            self.spend(element_count(shape))
            arrays = [self.weight(value) for value in tensors if isinstance(value, Constant)]
            with torch.no_grad():
                return Constant(self.unique(name), op.apply(*arrays).numpy())
        operands = tuple(self.operand(value) for value in tensors)
        output = self.unique(name)
        self.nodes.append(Node(op, operands, output))
        return Tensor(output, shape)

    def weight(self, constant: Constant) -> torch.Tensor:
        """Turn a constant into a float32 tensor.

        Raises:
            ModelError: it is not of a floating type, is not finite, or depends on the image's size.
        """
        array = constant.array
        if array.dtype == object or array.dtype.name not in ("float16", "float32", "float64", "bfloat16"):
            kind = "a number that depends on the image's size" if array.dtype == object else array.dtype.name
            raise ModelError(f"tensor {constant.name!r} is {kind}; weights must be floating point")
        with np.errstate(over="ignore"):
            single = np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape)
        if not np.isfinite(single).all():
            raise ModelError(f"tensor {constant.name!r} holds NaN or infinite values")
        return torch.from_numpy(single.copy())

    def operand(self, value: Value) -> str:
        """Name a value in the graph, adding it where it isn't there yet."""
        if not isinstance(value, Constant):
            return self.tensor(value).name
        if value.name not in self.weights:
            self.weights[value.name] = self.weight(value)
            self.names.add(value.name)
        return value.name

    def tensor(self, value: Value) -> Tensor:
        """Turn a view into ops.

        Raises:
            ModelError: no op of the vocabulary rearranges a tensor so.
        """
        if isinstance(value, Tensor):
            return value
        if isinstance(value, Constant):
            return Tensor(self.operand(value), value.shape)
        if isinstance(value, Above):
            raise ModelError("ONNX Greater: comparing images is not supported")
        if isinstance(value, Unsupported):
            raise ModelError(value.reason)
        if isinstance(value, Levels):
            raise ModelError("the integers of a QuantizeLinear can be read by a DequantizeLinear only")
        if isinstance(value, Scaled):
            if value not in self.made:
                scale = Constant(self.unique(f"{value.name}.scale"), value.scale)
                self.made[value] = self.tensor(self.add(Binary("mul"), [value.base, scale], value.name))
            return self.made[value]
        if value.layout.groups == whole(value.base.shape).groups and value.shape == value.base.shape:
            return value.base
        if value not in self.made:
            self.made[value] = self._materialise(value)
        return self.made[value]

    def _materialise(self, view: View) -> Tensor:
        since = len(self.nodes)
        op = recognise(view.layout)
        if op is not None:
            made = replace(self.tensor(self.add(op, [view.base], view.name)), shape=view.shape)
            return self.tensor(self.settle(made, view.name, since))
        channels = view.layout.channels()
        if channels is None:
            given, wanted = (", ".join(map(str, shape)) for shape in (view.base.shape, view.shape))
            raise ModelError(f"{view.label}: no supported op rearranges [{given}] to [{wanted}] so")
        return self.tensor(self.settle(self.select_channels(view.base, channels, view.name), view.name, since))

    def select_channels(self, x: Tensor, channels: Sequence[int], name: str) -> Tensor:
        """Gather channels as a concatenation of strided slices.

        Raises:
            ModelError: there would be too many.
        """
        if list(channels) == list(range(x.shape[1] if isinstance(x.shape[1], int) else -1)):
            return x
        runs: list[list[int]] = []
        for channel in channels:
            run = runs[-1] if runs else []
            if run and channel > run[-1] and (len(run) == 1 or channel - run[-1] == run[1] - run[0]):
                run.append(channel)
            else:
                runs.append([channel])
        if len(runs) > MAX_CHANNEL_RUNS:
            raise ModelError(
                f"({name}) reorders channels in {len(runs)} pieces; at most {MAX_CHANNEL_RUNS} are supported"
            )
        pieces = [
            self.add(Slice(1, run[0], run[-1] + 1, run[1] - run[0] if len(run) > 1 else 1), [x], name) for run in runs
        ]
        return self.tensor(self.add(Concat(1), pieces, name) if len(pieces) > 1 else pieces[0])
