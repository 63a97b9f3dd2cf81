"""One ONNX node as a converter sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilefuse.errors import ModelError
from tilefuse.importers.onnx_builder import Builder, Constant, Tensor, Value, View
from tilefuse.importers.onnx_sizes import Dim, Size
from tilefuse.importers.onnx_views import Layout
from tilefuse.ops import Op


@dataclass(frozen=True)
class Call:
    """One ONNX node: its inputs, and the means to convert it."""

    op: str
    label: str
    opset: int
    inputs: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    builder: Builder

    def refuse(self, what: str) -> ModelError:
        """Make the error for something this importer does not support."""
        return ModelError(f"{self.label}: {what}")

    def has(self, index: int) -> bool:
        """Tell whether an optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """Return an input as it is."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise self.refuse(f"input {index} is missing")
        return value

    def values(self) -> list[Value]:
        """Return all inputs."""
        return [self.value(i) for i in range(len(self.inputs))]

    def image(self, index: int = 0) -> Value:
        """Return an input of shape [N, C, H, W]; views stay views."""
        value = self.value(index)
        if len(value.shape) != 4:
            raise self.refuse(
                f"input of rank {len(value.shape)} (kernel_shape of another rank than 2-D) is not supported"
            )
        return value

    def add(self, op: Op, *inputs: Value) -> Tensor | Constant:
        """Append an op."""
        try:
            return self.builder.add(op, inputs, self.outputs[0])
        except ModelError as error:
            raise self.refuse(str(error)) from error

    def view(self, value: Value, layout: Layout) -> View:
        """Make a view of what `value` is a view of."""
        base = value.base if isinstance(value, View) else self.builder.tensor(value)
        return View(self.outputs[0], base, layout, self.label)

    def number(self, value: float) -> Constant:
        """Make a scalar weight."""
        return Constant(self.builder.unique(f"{self.outputs[0]}.number"), np.array(value, dtype=np.float32))

    def constant(self, index: int, what: str) -> NDArray[Any]:
        """Return an input that must be known now.

        Raises:
            ModelError: it is a run-time value.
        """
        value = self.value(index)
        if not isinstance(value, Constant):
            raise self.refuse(f"{what} is computed at run time; it must be a constant (bind it with `constants`)")
        return value.array

    def dims(self, index: int, what: str) -> tuple[Dim, ...]:
        """Return an input of sizes, which may depend on the image."""
        array = self.constant(index, what).reshape(-1)
        sizes = tuple(item if isinstance(item, Size) else int(item) for item in array.tolist())
        if any(isinstance(item, float) and item != int(item) for item in array.tolist()):
            raise self.refuse(f"{what} = {array.tolist()} must be whole numbers")
        return sizes

    def ints(self, index: int, what: str) -> tuple[int, ...]:
        """Return an input of plain integers."""
        sizes = self.dims(index, what)
        plain = tuple(size for size in sizes if isinstance(size, int))
        if len(plain) != len(sizes):
            raise self.refuse(f"{what} = [{', '.join(map(str, sizes))}] depends on the size of the image")
        return plain

    def scalar(self, index: int, what: str) -> float:
        """Return an input of one number."""
        array = self.constant(index, what)
        if array.size != 1 or array.dtype == object:
            raise self.refuse(f"{what} must be one number, not shape {list(array.shape)}")
        return float(array.reshape(()))

    def pair(self, values: Sequence[int] | None, what: str, default: int = 1) -> tuple[int, int]:
        """Read an attribute of two numbers, height and width, each at least `default`."""
        if values is None:
            return default, default
        if len(values) != 2 or min(values) < default:
            raise self.refuse(f"{what} = {list(values)} is not supported; two numbers of at least {default} are")
        return values[0], values[1]
