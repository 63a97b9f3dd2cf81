"""cuDNN's fused graphs through cudnn-frontend: each convolution with its bias and what follows it as one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tilefuse.backends.triton.prepare import members, prepare
from tilefuse.graph import Graph, Node, Shape
from tilefuse.ops import Activation, Binary, Conv2d, Op, PRelu

# Activations by their names in cudnn-frontend.
ACTIVATIONS = {"relu": "relu", "leaky_relu": "relu", "tanh": "tanh", "sigmoid": "sigmoid", "silu": "swish"}
Values = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Fused:
    """A built graph: the tensors it is given by their handles, and where the result is written."""

    graph: Any
    given: Mapping[Any, Tensor]
    read: Mapping[Any, str]
    target: tuple[Any, Tensor]
    workspace: Tensor

    def run(self, values: Values, handle: object) -> Tensor:
        """Execute it on the values it reads."""
        pack = {**self.given, **{key: values[name] for key, name in self.read.items()}, self.target[0]: self.target[1]}
        self.graph.execute(pack, self.workspace, handle=handle)
        return self.target[1]


def fused_network(
    graph: Graph, shape: Shape, dtype: torch.dtype, device: str, cudnn: ModuleType
) -> Callable[[Tensor], Tensor]:
    """Build a network in channels_last for one input shape: convolutions by cuDNN's graphs, the rest by torch.

    Raises:
        Exception: cudnn-frontend's own, where no engine takes a graph.
    """
    prepared, handle = prepare(graph), cudnn.create_handle()
    shapes = prepared.shapes(shape)
    weights = {name: laid_out(tensor.to(device, dtype)) for name, tensor in prepared.weights.items()}
    steps: list[tuple[Node, Fused | None, int]] = []
    for node in prepared.nodes:
        built = _build(node, shapes, weights, device, cudnn, handle)
        steps.append((node, *built) if built is not None else (node, None, 0))
    (name,), (result,) = (spec.name for spec in prepared.inputs), prepared.outputs

    def run(x: Tensor) -> Tensor:
        if device == "cuda":
            cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
        values: Values = {**weights, name: laid_out(x)}
        for node, fused, taken in steps:
            head, inputs, behind = members(node)
            value = head.apply(*(values[each] for each in inputs)) if fused is None else fused.run(values, handle)
            for op, extras in behind[taken:]:
                value = op.apply(value, *(values[each] for each in extras))
            values[node.output] = laid_out(value)
        return values[result]

    return run


def _build(
    node: Node, shapes: Mapping[str, Shape], weights: Values, device: str, cudnn: ModuleType, handle: object
) -> tuple[Fused, int] | None:
    """Build a convolution with as many members as one graph takes, and count them; None for other nodes."""
    head, inputs, behind = members(node)
    constant = all(name in weights for name in inputs[1:])
    if not isinstance(head, Conv2d) or head.groups > 1 or head.padding_mode != "constant" or not constant:
        return None
    weight, kinds = weights[inputs[1]], cudnn.data_type
    dtype = {torch.float16: kinds.HALF, torch.float32: kinds.FLOAT}[weight.dtype]
    built = cudnn.pygraph(
        io_data_type=dtype, intermediate_data_type=kinds.FLOAT, compute_data_type=kinds.FLOAT, handle=handle
    )
    given: dict[Any, Tensor] = {}
    read: dict[Any, str] = {}

    def tensor(like: Tensor) -> Any:
        return built.tensor(dim=list(like.shape), stride=list(like.stride()), data_type=dtype)

    def named(name: str) -> Any:
        """Give the handle of a value or a weight that the graph reads."""
        if name in weights:
            vector = weights[name].reshape(1, -1, 1, 1)
            key = tensor(vector)
            given[key] = vector
        else:
            key = tensor(_empty(shapes[name], weight.dtype, "meta"))
            read[key] = name
        return key

    image, filters = named(inputs[0]), tensor(weight)
    given[filters] = weight
    top, left, bottom, right = head.padding
    value = built.conv_fprop(
        image=image, weight=filters, pre_padding=[top, left], post_padding=[bottom, right], stride=list(head.stride),
        dilation=list(head.dilation),
    )  # fmt: skip
    if len(inputs) > 2:
        value = built.bias(input=value, bias=named(inputs[2]))
    taken = 0
    size = tuple(head.apply(_empty(shapes[inputs[0]], weight.dtype, "meta"), weight.to("meta")).shape)
    for op, extras in behind:
        followed = _followed(built, value, op, extras, named, weights, shapes, size)
        if followed is None:
            break
        value, taken = followed, taken + 1
    value.set_output(True).set_data_type(dtype)
    built.build([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    out = _empty(size, weight.dtype, device)
    workspace = torch.empty(built.get_workspace_size(), dtype=torch.uint8, device=device)
    return Fused(built, given, read, (value, out), workspace), taken


def _followed(
    built: Any,
    value: Any,
    op: Op,
    extras: tuple[str, ...],
    named: Callable[[str], Any],
    weights: Values,
    shapes: Mapping[str, Shape],
    size: Shape,
) -> Any:
    """Append one member to a graph; None where it has no such node."""
    match op:
        case Activation(kind="leaky_relu", slope=slope):
            return built.relu(input=value, negative_slope=slope)
        case Activation(kind=kind) if kind in ACTIVATIONS:
            return getattr(built, ACTIVATIONS[kind])(input=value)
        case PRelu() if weights[extras[0]].numel() in (1, size[1]):
            # max(x, 0) + slope * (x - max(x, 0))
            above = built.relu(input=value)
            below = built.mul(a=built.sub(a=value, b=above), b=named(extras[0]))
            return built.add(a=above, b=below)
        case Binary(kind="add") if extras[0] not in weights and tuple(shapes[extras[0]]) == size:
            return built.add(a=value, b=named(extras[0]))
    return None


def _empty(shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    """Allocate a value as it lies in memory: images channels_last, with the strides of a whole one."""
    n, c, h, w = shape
    return torch.empty(n, h, w, c, dtype=dtype, device=device).permute(0, 3, 1, 2)


def laid_out(x: Tensor) -> Tensor:
    """Lay an image out as cuDNN's graphs read it."""
    if x.ndim != 4:
        return x
    n, c, h, w = x.shape
    dense = (h * w * c, 1, w * c, c)
    return (
        x if x.stride() == dense else torch.empty_strided((n, c, h, w), dense, dtype=x.dtype, device=x.device).copy_(x)
    )
