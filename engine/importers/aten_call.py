"""What a converter of ATen ops works with: one call seen at two image sizes, and the builder it adds nodes to.

A module is exported twice, at two sizes. What is equal in both captures is a constant of the network; what differs
follows the image's size and has to be expressed as a scale, a margin or a kept dimension.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, fx

from tilefuse.errors import ModelError
from tilefuse.graph import Graph, Input, Node, Shape
from tilefuse.ops import Op, Pair

UNTILED = "the model still runs untiled on torch_eager"


class SizeDependentError(ModelError):
    """An argument follows the image's size in a way the graph can't express, at the two sizes captured."""


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that does not depend on the inputs, and the name its weight gets when a node reads it."""

    tensor: Tensor
    name: str


Value = str | Constant | dict[int, str | Constant]


@dataclass
class Builder:
    """Collects nodes and weights under names used once."""

    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    # The tensor is kept beside its name: were it freed, another could take its address.
    seen: dict[tuple[object, ...], tuple[str, Tensor]] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        """Reserve a name, with a number behind it where it is taken."""
        chosen, count = name, 1
        while chosen in self.names:
            chosen, count = f"{name}_{count}", count + 1
        self.names.add(chosen)
        return chosen

    def emit(self, op: Op, inputs: Sequence[str], name: str) -> str:
        """Add a node and return the name of its value."""
        output = self.unique(name)
        self.nodes.append(Node(op, tuple(inputs), output))
        return output

    def weight(self, constant: Constant) -> str:
        """Add a copy of a constant as a weight, once however many nodes read it."""
        tensor = constant.tensor
        place = (
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
        )
        if place not in self.seen:
            name = self.unique(constant.name)
            self.weights[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
            self.seen[place] = name, tensor
        return self.seen[place][0]

    def scalar(self, value: float, like: Tensor) -> str:
        """Add a number as a weight of shape []."""
        key = ("scalar", float(value), like.dtype)
        if key not in self.seen:
            name = self.unique(f"scalar_{value:g}")
            self.weights[name] = torch.tensor(float(value), dtype=like.dtype, device=like.device)
            self.seen[key] = name, self.weights[name]
        return self.seen[key][0]

    def graph(self, inputs: tuple[Input, ...], outputs: tuple[str, ...]) -> Graph:
        return Graph(inputs, tuple(self.nodes), outputs, self.weights)


@dataclass(frozen=True, eq=False)
class Call:
    """One ATen call in the captures at both sizes. Arguments go by the names of the op's schema."""

    node: fx.Node
    other: fx.Node
    values: dict[fx.Node, Value]
    builder: Builder

    @property
    def first(self) -> str:
        """Name of the op's first argument."""
        name: str = self.node.target._schema.arguments[0].name  # type: ignore[union-attr]
        return name

    @property
    def target(self) -> str:
        """The op and overload, as `conv2d.default`."""
        return target_name(self.node)

    def has(self, name: str) -> bool:
        return any(argument.name == name for argument in self.node.target._schema.arguments)  # type: ignore[union-attr]

    def get(self, name: str, default: Any = None) -> Any:
        """Give an argument that is the same at both sizes, or `default` when the overload has none of that name."""
        if not self.has(name):
            return default
        first, second = self.both(name)
        if first != second:
            raise self.varies(f"the argument {name!r}")
        return first

    def both(self, name: str) -> tuple[Any, Any]:
        """Give an argument as it is at the two sizes."""
        return _argument(self.node, name), _argument(self.other, name)

    def raw(self, name: str) -> Any:
        """Give an argument of the first capture, its tensors as nodes."""
        return _argument(self.node, name) if self.has(name) else None

    def shapes(self, name: str) -> tuple[Shape, Shape]:
        """Give the shape of a tensor argument at the two sizes."""
        first, second = self.both(name)
        return tuple(first.meta["val"].shape), tuple(second.meta["val"].shape)

    @property
    def results(self) -> tuple[Shape, Shape]:
        """Shape of the result at the two sizes."""
        return tuple(self.node.meta["val"].shape), tuple(self.other.meta["val"].shape)

    def value(self, name: str) -> str:
        """Give the name of a tensor argument's value; a constant becomes a weight."""
        return self.named(_argument(self.node, name))

    def named(self, argument: Any) -> str:
        if not isinstance(argument, fx.Node):
            raise self.refused(f"has no tensor where one is expected ({argument!r})")
        value = self.values[argument]
        if isinstance(value, dict):
            raise self.refused("uses several results of an op as one")
        return self.builder.weight(value) if isinstance(value, Constant) else value

    def constant(self, name: str) -> Constant:
        """Give a tensor argument that has to be a constant of the network."""
        argument = _argument(self.node, name)
        value = self.values[argument] if isinstance(argument, fx.Node) else None
        if not isinstance(value, Constant):
            raise self.refused(f"takes its {name!r} from the running network, not from its weights")
        return value

    def emit(self, op: Op, *inputs: str) -> str:
        return self.builder.emit(op, inputs, self.node.name)

    def weight(self, tensor: Tensor, name: str) -> str:
        return self.builder.weight(Constant(tensor, name))

    def scalar(self, value: float) -> str:
        return self.builder.scalar(value, self.node.meta["val"])

    def refused(self, reason: str) -> ModelError:
        """Make the error for a call outside the vocabulary."""
        return ModelError(f"{describe(self.node)} {reason}; {UNTILED}")

    def varies(self, what: str) -> SizeDependentError:
        """Make the error for what follows the image's size in a way the graph can't express."""
        return SizeDependentError(
            f"{describe(self.node)}: {what} follows the image's size, and not as a constant scale or margin; {UNTILED}"
        )


Converter = Callable[[Call], Value]


def pair(value: Any) -> Pair:
    """Read an `int[2]` argument, which may hold one number for both axes."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers[0], numbers[-1]


def identity(call: Call) -> Value:
    """Pass the first argument on: the call changes nothing at inference."""
    return call.values[call.raw(call.first)]


def target_name(node: fx.Node) -> str:
    """Name an fx node's op and overload without its namespace: `relu.default`; in-place ops go by their plain name."""
    if isinstance(node.target, torch._ops.OpOverload):
        packet, overload = node.target._schema.name.split("::")[1], node.target._overloadname
        return f"{packet[:-1] if mutates(node) else packet}.{overload}"
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def mutates(node: fx.Node) -> bool:
    """Tell whether a call writes into its first argument."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.arguments:
        return False
    alias = node.target._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def module_path(node: fx.Node) -> str:
    """Path of the innermost module a call was made in, empty for the outermost."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def describe(node: fx.Node) -> str:
    """Name a call, and where it stands: `aten.softmax.int (in module 'body.3', network.py:12)`."""
    name = str(node.target) if isinstance(node.target, torch._ops.OpOverload) else target_name(node)
    path = module_path(node)
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(PurePath(path), line) for path, line in frames if "torch" not in PurePath(path).parts]
    line = f"{own[-1][0].name}:{own[-1][1]}" if own else ""
    found = ", ".join(part for part in (f"in module {path!r}" if path else "", line) if part)
    return f"{name} ({found})" if found else name


def _argument(node: fx.Node, name: str) -> Any:
    schema = node.target._schema  # type: ignore[union-attr]
    for position, argument in enumerate(schema.arguments):
        if argument.name != name:
            continue
        if position < len(node.args) and not argument.kwarg_only:
            return node.args[position]
        return node.kwargs.get(name, argument.default_value)
    raise KeyError(name)
