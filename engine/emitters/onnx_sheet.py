"""The ONNX graph under construction, and the shapes the emitters need to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.graph import Shape
from tilefuse.importers.onnx_files import onnx_module
from tilefuse.ops import Op

if TYPE_CHECKING:
    import onnx

ELEMENTS = {torch.float32: "FLOAT", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16", torch.float64: "DOUBLE"}
INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Sheet:
    """Nodes and initializers so far. `shapes` are of one image size; they hold for every image only where `fixed`."""

    shapes: dict[str, Shape]
    weights: Mapping[str, Tensor]
    dtype: torch.dtype
    fixed: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def unique(self, wanted: str) -> str:
        """Take a name nothing else has."""
        name, count = wanted, 0
        while name in self.names:
            count += 1
            name = f"{wanted}/{count}"
        self.names.add(name)
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        node = onnx_module().helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def step(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node on the way to `output`, under a name of its own."""
        return self.add(kind, inputs, self.unique(f"{output}/{kind}"), **attributes)

    def tensor(self, value: Tensor, name: str) -> str:
        """Append an initializer."""
        helper, proto = onnx_module().helper, onnx_module().TensorProto
        name = self.unique(name)
        plain = value.detach().cpu().contiguous()
        raw = plain.view(-1).view(torch.uint8).numpy().tobytes()
        kind = proto.INT64 if plain.dtype == torch.int64 else getattr(proto, ELEMENTS[plain.dtype])
        self.initializers.append(helper.make_tensor(name, kind, tuple(plain.shape), raw, raw=True))
        return name

    def ints(self, values: Sequence[int], name: str) -> str:
        """Append a list of integers."""
        return self.tensor(torch.tensor(list(values), dtype=torch.int64), name)

    def number(self, value: float, name: str) -> str:
        """Append a scalar of the graph's type."""
        return self.tensor(torch.tensor(value, dtype=self.dtype), name)

    def per_channel(self, name: str, output: str, ones: int = 2) -> str:
        """Append dimensions of 1 to a [C] value, which stays an initializer where it is a weight."""
        shape = [-1, *([1] * ones)]
        if name in self.weights:
            return self.tensor(self.weights[name].reshape(shape), f"{name}/channels")
        return self.step("Reshape", [name, self.ints(shape, f"{output}/shape")], output)

    def refuse(self, op: Op, what: str) -> BackendError:
        """Make the error for an op that ONNX can't express."""
        return BackendError(f"ONNX has no form of {op.name} with {what}")


Emit = Callable[[Sheet, Any, Sequence[str], str], None]
