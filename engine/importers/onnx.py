"""ONNX → Graph.

Every node is converted by the one function `onnx_ops.OPS` names for it, whose keyword parameters are the ONNX
attributes it supports: an attribute it does not name is refused, never ignored. What is known before the image is
(weights, shapes, the arithmetic on shapes) is folded, so that height, width and batch may stay unknown.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilefuse.errors import ModelError
from tilefuse.graph import Graph, Input
from tilefuse.importers.onnx_builder import Builder, Constant, Tensor, Unsupported, Value
from tilefuse.importers.onnx_call import Call
from tilefuse.importers.onnx_constants import FOLDS, fold
from tilefuse.importers.onnx_files import onnx_module, read_model, tensor_array
from tilefuse.importers.onnx_ops import OPS
from tilefuse.importers.onnx_sizes import Dim, symbol

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 9
FLAGS = frozenset(
    {
        "allowzero",
        "antialias",
        "ceil_mode",
        "count_include_pad",
        "exclude_outside",
        "keepdims",
        "noop_with_empty_axes",
        "training_mode",
        "transA",
        "transB",
    }
)
FLOATING = {1: "FLOAT", 10: "FLOAT16", 11: "DOUBLE", 16: "BFLOAT16"}


def from_onnx(source: str | Path | onnx.ModelProto, constants: Mapping[str, NDArray[Any]] | None = None) -> Graph:
    """Read an ONNX model of opset 9 or later into a graph, computing in float32 whatever its floating type.

    `constants` freezes graph inputs by name to fixed values. Sizes the file leaves open become None in `Input.shape`.

    Raises:
        ModelError: the file can't be read safely, or an op, attribute or data type in it is not supported; the message
            names it.
    """
    model = read_model(source)
    place = f"{source}: " if isinstance(source, str | Path) else ""
    try:
        return _convert_model(model, constants or {})
    except ModelError as error:
        raise ModelError(f"{place}{error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # protobuf hands out text that is not UTF-8 as bytes, and enums without a name; either may fail anywhere.
        raise ModelError(f"{place}the ONNX model is malformed: {error}") from error


def _convert_model(model: onnx.ModelProto, constants: Mapping[str, NDArray[Any]]) -> Graph:
    opset = _opset(model)
    _refuse_unknown(model)
    _check(model)
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    builder = Builder(names=names | {value.name for value in (*model.graph.input, *model.graph.initializer)})
    values: dict[str, Value | None] = {"": None}
    for tensor in model.graph.initializer:
        values[tensor.name] = Constant(tensor.name, tensor_array(tensor))
    for name, array in constants.items():
        if name not in {value.name for value in model.graph.input}:
            raise ModelError(f"the ONNX model has no input {name!r} to bind")
        values[name] = Constant(name, np.asarray(array))
    inputs = [_input(value) for value in model.graph.input if value.name not in values]
    values |= dict(inputs)
    for node in model.graph.node:
        _convert(node, opset, values, builder)
    outputs = tuple(builder.operand(_defined(values, value.name)) for value in model.graph.output)
    specs = tuple(
        Input(name, tuple(size if isinstance(size, int) else None for size in tensor.shape)) for name, tensor in inputs
    )
    return Graph(specs, tuple(builder.nodes), outputs, builder.weights)


def _opset(model: onnx.ModelProto) -> int:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    if not opset:
        raise ModelError("the ONNX model names no opset; the file may be truncated")
    if opset < OLDEST_OPSET:
        raise ModelError(f"the ONNX model has opset {opset}; {OLDEST_OPSET} or later is needed: export it again")
    return int(opset)


def _refuse_unknown(model: onnx.ModelProto) -> None:
    """Name every op outside the vocabulary at once, before anything is computed."""
    if model.functions:
        raise ModelError(f"the ONNX model defines functions of its own ({model.functions[0].name}); inline them first")
    if model.graph.sparse_initializer:
        raise ModelError("the ONNX model holds sparse_initializer, which is not supported")
    unknown = dict.fromkeys(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        for node in model.graph.node
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPS.keys() | FOLDS.keys()
    )
    if unknown:
        raise ModelError(f"the ONNX model uses unsupported ops: {', '.join(unknown)}")


def _check(model: onnx.ModelProto) -> None:
    module = onnx_module()
    try:
        module.checker.check_model(model)
    except (module.checker.ValidationError, ValueError, TypeError) as error:
        raise ModelError(f"the ONNX model is not valid: {str(error).strip().splitlines()[0]}") from error


def _input(value: onnx.ValueInfoProto) -> tuple[str, Tensor]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(f"input {value.name!r} is a {kind}; only tensors are supported")
    element = value.type.tensor_type.elem_type
    if element not in FLOATING:
        name = onnx_module().TensorProto.DataType.Name(element)
        raise ModelError(
            f"input {value.name!r} has the data type {name}; only {', '.join(FLOATING.values())} are supported"
        )
    if not value.type.tensor_type.HasField("shape"):
        raise ModelError(f"input {value.name!r} has no shape; its rank must be known")
    sizes: list[Dim] = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        sizes.append(
            dim.dim_value
            if dim.HasField("dim_value") and dim.dim_value > 0
            else symbol(dim.dim_param or f"{value.name}.{axis}")
        )
    return value.name, Tensor(value.name, tuple(sizes))


def _defined(values: Mapping[str, Value | None], name: str) -> Value:
    value = values.get(name)
    if value is None:
        raise ModelError(f"the ONNX model reads {name!r}, which nothing before it defines")
    if isinstance(value, Unsupported):
        raise ModelError(value.reason)
    return value


def _convert(node: onnx.NodeProto, opset: int, values: dict[str, Value | None], builder: Builder) -> None:
    label = f"ONNX {node.op_type} {node.name!r}" if node.name else f"ONNX {node.op_type}"
    inputs = tuple(_defined(values, name) if name else None for name in node.input)
    attributes = {a.name: _attribute(a) for a in node.attribute}
    names = tuple(node.output)
    results: tuple[Value, ...]
    if node.op_type in FOLDS and all(value is None or isinstance(value, Constant) for value in inputs):
        arrays = [value.array if isinstance(value, Constant) else None for value in inputs]
        try:
            folded = fold(node.op_type, arrays, attributes)
        except ModelError as error:
            raise ModelError(f"{label}: {error}") from error
        for array in folded:
            builder.spend(array.size if array.base is None else 0, array.itemsize)
        results = tuple(Constant(name, array) for name, array in zip(names, folded, strict=False))
    elif node.op_type in OPS:
        call = Call(node.op_type, label, opset, inputs, names, builder)
        results = _run(call, attributes)
    else:
        raise ModelError(f"{label}: not supported on run-time values")
    values |= dict(zip(names, results, strict=False))
    for index in range(len(results), len(names)):
        output = onnx_module().defs.get_schema(node.op_type, opset).outputs[index].name
        values[names[index]] = Unsupported(f"{label}: the output {output} is not supported")


def _run(call: Call, attributes: dict[str, Any]) -> tuple[Value, ...]:
    converter = OPS[call.op]
    taken = {p.name for p in inspect.signature(converter).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for name in attributes:
        fixed = converter.keywords if isinstance(converter, partial) else {}
        if name not in taken or name in fixed:
            raise call.refuse(f"attribute {name} is not supported")
        if name in FLAGS and attributes[name] not in (0, 1):
            raise call.refuse(f"attribute {name} = {attributes[name]}; 0 or 1 is expected")
    since = len(call.builder.nodes)
    try:
        made = converter(call, **attributes)
    except ModelError as error:
        if str(error).startswith(call.label):
            raise
        raise call.refuse(str(error)) from error
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # The checker does not compare lengths and ranks; a file in which they disagree fails wherever they meet.
        raise call.refuse(f"malformed: {error}") from error
    if isinstance(made, tuple):
        return made
    return (call.builder.settle(made, call.outputs[0], since),)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    module = onnx_module()
    if attribute.type in (module.AttributeProto.GRAPH, module.AttributeProto.GRAPHS):
        raise ModelError(f"attribute {attribute.name} is a graph; control flow is not supported")
    value = module.helper.get_attribute_value(attribute)
    if attribute.type == module.AttributeProto.FLOAT:
        # The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(value)))
    return value.decode(errors="replace") if isinstance(value, bytes) else value
