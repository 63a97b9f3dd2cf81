"""The written graph put in order: batch norms folded, what torch noted about its own sources taken out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tilefuse.importers.onnx_files import onnx_module

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]


def tidy(model: onnx.ModelProto, name: str) -> None:
    """Drop torch's notes (they hold the paths of source files) and inferred sizes, and name the graph."""
    model.graph.name = name
    del model.graph.value_info[:]
    for holder in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        holder.ClearField("doc_string")
        del holder.metadata_props[:]
    for tensor in model.graph.initializer:
        tensor.ClearField("doc_string")
        del tensor.metadata_props[:]


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename values of the main graph; one that has such a new name already gets out of the way."""
    graph = model.graph
    inner = {new: f"{new}/inner" for new in names.values() if new not in names}
    every = {**inner, **names}
    for node in graph.node:
        node.input[:] = [every.get(name, name) for name in node.input]
        node.output[:] = [every.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = every.get(value.name, value.name)


def fold_batch_norm(model: onnx.ModelProto) -> None:
    """Fold the batch norms that torch's optimiser leaves: into the linear layer before a reshape, else as s·x + t."""
    helper, numpy_helper = onnx_module().helper, onnx_module().numpy_helper
    graph = model.graph
    if not any(node.op_type == "BatchNormalization" for node in graph.node):
        return
    weights = {tensor.name: tensor for tensor in graph.initializer}
    ranks = _ranks(model)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or any(name not in weights for name in node.input[1:]):
            nodes.append(node)
            continue
        scale, bias, mean, variance = (numpy_helper.to_array(weights[n]).astype(np.float64) for n in node.input[1:])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        shift = bias - mean * factor
        if _into_linear(graph, nodes, weights, node.input[0], factor, shift):
            nodes.append(helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name))
            continue
        shape = (-1, *[1] * (ranks[node.input[0]] - 2))
        names = [f"{node.output[0]}/{part}" for part in ("factor", "shift", "product")]
        for name, value in zip(names, (factor, shift), strict=False):
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32).reshape(shape), name))
        nodes.append(helper.make_node("Mul", [node.input[0], names[0]], [names[2]], name=names[2]))
        nodes.append(helper.make_node("Add", [names[2], names[1]], [node.output[0]], name=node.name))
    del graph.node[:]
    graph.node.extend(_without_identities(nodes, {value.name for value in graph.output}))
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _into_linear(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    weights: dict[str, onnx.TensorProto],
    source: str,
    factor: Array,
    shift: Array,
) -> bool:
    """Fold s·x + t into the Gemm before the Reshape that makes `source`, where nothing else reads either."""
    numpy_helper = onnx_module().numpy_helper
    makers = {name: node for node in nodes for name in node.output}
    readers = [name for node in graph.node for name in node.input]
    reshape = makers.get(source)
    if reshape is None or reshape.op_type != "Reshape" or reshape.input[1] not in weights:
        return False
    gemm = makers.get(reshape.input[0])
    shape = numpy_helper.to_array(weights[reshape.input[1]])
    if gemm is None or gemm.op_type != "Gemm" or len(gemm.input) != 3 or len(shape) < 3 or shape[1] != len(factor):
        return False
    attributes = {a.name: onnx_module().helper.get_attribute_value(a) for a in gemm.attribute}
    plain = all(attributes.get(name, 1.0) == 1.0 for name in ("alpha", "beta")) and attributes.get("transB", 0)
    alone = all(readers.count(name) == 1 for name in (source, reshape.input[0], *gemm.input[1:]))
    if not plain or not alone or any(name not in weights for name in gemm.input[1:]):
        return False
    weight, bias = (numpy_helper.to_array(weights[name]).astype(np.float64) for name in gemm.input[1:])
    if weight.shape[0] % len(factor) or bias.shape != weight.shape[:1]:
        return False
    each = weight.shape[0] // len(factor)
    rows, offsets = factor.repeat(each), shift.repeat(each)
    for name, value in zip(gemm.input[1:], (weight * rows[:, None], bias * rows + offsets), strict=True):
        weights[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    return True


def _without_identities(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    same: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node in nodes:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    return kept


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx_module().shape_inference.infer_shapes(model).graph
    ranks = {tensor.name: len(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks
