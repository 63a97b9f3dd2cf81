"""Graph → ONNX: what ONNX Runtime and OpenVINO run, and what export writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tilefuse.emitters import onnx_layers as layers
from tilefuse.emitters import onnx_layout as layout
from tilefuse.emitters import onnx_pooling as pooling
from tilefuse.emitters.onnx_sheet import ELEMENTS, Emit, Sheet
from tilefuse.errors import BackendError
from tilefuse.graph import Graph, Input, Shape
from tilefuse.importers.onnx_files import onnx_module
from tilefuse.ops import (
    Activation,
    AdaptivePool2d,
    BatchNorm,
    Binary,
    Cast,
    Clamp,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Fused,
    GroupNorm,
    Linear,
    Mean,
    Op,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Pool2d,
    PRelu,
    Reshape,
    Resize,
    Round,
    Slice,
    Unary,
)

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 20
IR_VERSION = 9
# Divides by every factor up to 8, so that shuffles and strides fit; nothing of this size is ever computed.
PROBE_PX = 6720

_ACTIVATIONS = {
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "gelu": "Gelu",
    "gelu_tanh": "Gelu",
    "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
}
_UNARY = {
    "abs": "Abs",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "erf": "Erf",
}
_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"}


def to_onnx(graph: Graph, *, shapes: Sequence[Shape] | None = None, opset: int = OLDEST_OPSET) -> onnx.ModelProto:
    """Write a graph as an ONNX model, weights inside, in the floating type of its weights.

    Where it has none or several, inputs and outputs are float32.

    `shapes` fixes the input shapes; without it the sizes the graph leaves open stay symbolic (batch, height, width).

    Raises:
        BackendError: ONNX can't express an op, or the opset is too old.
        ModelError: the graph can't take inputs of these shapes.
    """
    if opset < OLDEST_OPSET:
        raise BackendError(f"ONNX opset {opset} was asked for; {OLDEST_OPSET} or later is needed")
    helper = onnx_module().helper
    fixed = shapes is not None or all(None not in spec.shape for spec in graph.inputs)
    given = tuple(shapes) if shapes is not None else _probe(graph, 1)
    types = {weight.dtype for weight in graph.weights.values() if weight.is_floating_point()}
    several = len(types) > 1
    dtype = torch.float32 if several or not types else next(iter(types))
    # Shapes are inferred without data, and where there is one type in the one that every op takes.
    bare = graph.to(dtype=None if several else torch.float32, device="meta")
    found = bare.shapes(*given)
    sheet = Sheet(dict(found), graph.weights, dtype, fixed)
    sheet.names.update(found)
    read = {name for node in graph.nodes for name in node.inputs} | set(graph.outputs)
    for name, weight in graph.weights.items():
        if name in read:
            sheet.names.discard(name)
            sheet.tensor(weight, name)
    for node in graph.nodes:
        _emit(sheet, node.op, node.inputs, node.output)
    outputs = [_output(sheet, graph, position) for position in range(len(graph.outputs))]
    element = getattr(onnx_module().TensorProto, ELEMENTS[dtype])
    specs = [
        helper.make_tensor_value_info(spec.name, element, given[i] if fixed else _named(spec, len(graph.inputs) > 1))
        for i, spec in enumerate(graph.inputs)
    ]
    made = _output_shapes(bare, found, fixed)
    results = [helper.make_tensor_value_info(name, element, shape) for name, shape in zip(outputs, made, strict=True)]
    body = helper.make_graph(sheet.nodes, "tilefuse", specs, results, sheet.initializers)
    return helper.make_model(
        body, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, producer_name="tilefuse"
    )


def _probe(graph: Graph, times: int) -> tuple[Shape, ...]:
    """Shapes with the open sizes filled in, batch with `times`."""
    return tuple(
        tuple(
            size if size is not None else times if axis == 0 else PROBE_PX * times
            for axis, size in enumerate(spec.shape)
        )
        for spec in graph.inputs
    )


def _named(spec: Input, several: bool) -> list[int | str]:
    """Name the open sizes, apart for each input where there are several."""
    usual = ["batch", "channels", "height", "width"] if len(spec.shape) == 4 else []
    names = [usual[axis] if usual else f"size{axis}" if axis else "batch" for axis in range(len(spec.shape))]
    return [
        (f"{spec.name}_{name}" if several else name) if size is None else size
        for name, size in zip(names, spec.shape, strict=True)
    ]


def _output_shapes(graph: Graph, found: dict[str, Shape], fixed: bool) -> list[list[int | None]]:
    """Sizes of the outputs; open ones are those that differ between two sizes of input."""
    again = found if fixed else graph.shapes(*_probe(graph, 2))
    return [[a if a == b else None for a, b in zip(found[name], again[name], strict=True)] for name in graph.outputs]


def _output(sheet: Sheet, graph: Graph, position: int) -> str:
    """Name an output; an input, a weight or a repeated output is copied, as ONNX wants a node to make each."""
    name = graph.outputs[position]
    made = any(node.output == name for node in graph.nodes)
    if made and name not in graph.outputs[:position]:
        return name
    return sheet.add("Identity", [name], sheet.unique(f"{name}/output"))


def _emit(sheet: Sheet, op: Op, inputs: Sequence[str], output: str) -> None:
    if isinstance(op, Fused):
        _fused(sheet, op, inputs, output)
        return
    emit = EMITTERS.get(type(op))
    if emit is None:
        raise BackendError(f"ONNX export does not know the op {op.name}")
    emit(sheet, op, inputs, output)


def _fused(sheet: Sheet, op: Fused, inputs: Sequence[str], output: str) -> None:
    """Emit the members one after another."""
    value: tuple[str, ...] = ()
    rest = list(inputs)
    for position, (member, arity) in enumerate(zip(op.members, op.arities, strict=True)):
        last = position == len(op.members) - 1
        name = output if last else sheet.unique(f"{output}/{member.name}")
        operands = [*value, *rest[:arity]]
        _emit(sheet, member, operands, name)
        if not last:
            metas = [torch.empty(sheet.shapes[operand], device="meta") for operand in operands]
            sheet.shapes[name] = tuple(member.apply(*metas).shape)
        value, rest = (name,), rest[arity:]


def _activation(sheet: Sheet, op: Activation, inputs: Sequence[str], output: str) -> None:
    (x,) = inputs
    match op.kind:
        case "silu":
            sheet.add("Mul", [x, sheet.step("Sigmoid", [x], output)], output)
        case "mish":
            sheet.add("Mul", [x, sheet.step("Tanh", [sheet.step("Softplus", [x], output)], output)], output)
        case "leaky_relu" | "elu":
            sheet.add(_ACTIVATIONS[op.kind], [x], output, alpha=float(op.slope))
        case "gelu_tanh":
            sheet.add("Gelu", [x], output, approximate="tanh")
        case "hardsigmoid":
            sheet.add("HardSigmoid", [x], output, alpha=1 / 6, beta=0.5)
        case _:
            sheet.add(_ACTIVATIONS[op.kind], [x], output)


def _prelu(sheet: Sheet, op: PRelu, inputs: Sequence[str], output: str) -> None:
    del op
    sheet.add("PRelu", inputs, output)


def _clamp(sheet: Sheet, op: Clamp, inputs: Sequence[str], output: str) -> None:
    low = "" if op.low is None else sheet.number(op.low, f"{output}/low")
    high = "" if op.high is None else sheet.number(op.high, f"{output}/high")
    sheet.add("Clip", [inputs[0], low, high], output)


def _unary(sheet: Sheet, op: Unary, inputs: Sequence[str], output: str) -> None:
    (x,) = inputs
    match op.kind:
        case "square":
            sheet.add("Mul", [x, x], output)
        case "rsqrt":
            sheet.add("Reciprocal", [sheet.step("Sqrt", [x], output)], output)
        case _:
            sheet.add(_UNARY[op.kind], [x], output)


def _round(sheet: Sheet, op: Round, inputs: Sequence[str], output: str) -> None:
    del op
    sheet.add("Round", inputs, output)


def _binary(sheet: Sheet, op: Binary, inputs: Sequence[str], output: str) -> None:
    sheet.add(_BINARY[op.kind], inputs, output)


def _cast(sheet: Sheet, op: Cast, inputs: Sequence[str], output: str) -> None:
    sheet.add("Cast", inputs, output, to=getattr(onnx_module().TensorProto, ELEMENTS[op.dtype]))


EMITTERS: dict[type[Op], Emit] = {
    Activation: _activation,
    AdaptivePool2d: pooling.adaptive_pool,
    BatchNorm: layers.batch_norm,
    Binary: _binary,
    Cast: _cast,
    Clamp: _clamp,
    Concat: layout.concat,
    Conv2d: layers.conv,
    ConvTranspose2d: layers.conv_transpose,
    GroupNorm: layers.group_norm,
    Linear: layers.linear,
    Mean: layers.mean,
    Pad: layout.pad,
    PixelShuffle: layout.pixel_shuffle,
    PixelUnshuffle: layout.pixel_unshuffle,
    Pool2d: pooling.pool,
    PRelu: _prelu,
    Reshape: layout.reshape,
    Resize: layout.resize,
    Round: _round,
    Slice: layout.slice_,
    Unary: _unary,
}
