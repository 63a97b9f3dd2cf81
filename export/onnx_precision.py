"""fp32 → fp16, one value at a time: nodes that would overflow keep fp32, and casts stand only between the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.errors import ExportError
from tilefuse.export.onnx_verify import ort_session
from tilefuse.importers.onnx_files import onnx_module

if TYPE_CHECKING:
    import onnx

# A quarter of fp16's largest value, as a few samples do not show the extremes of all images.
LIMIT = 65504 / 4
# They square, exponentiate, or add up a whole image, of whatever size; or they have a type of their own to keep.
ALWAYS_FP32 = frozenset(
    {
        *("InstanceNormalization", "GroupNormalization", "LayerNormalization", "LpNormalization"),
        *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceProd", "GlobalAveragePool", "Softmax"),
        *(
            "Constant",
            "Pow",
            "Exp",
            "CumSum",
            "DFT",
            "ConstantOfShape",
            "Range",
            "RandomNormalLike",
            "RandomUniformLike",
        ),
    }
)
# Inputs that the standard fixes to fp32.
FP32_INPUTS = {"Resize": frozenset({1, 2}), "Upsample": frozenset({1})}


@dataclass(frozen=True)
class _Sheet:
    """The graph being written: `stored` is the type each floating value has in it."""

    stored: dict[str, int]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    casts: set[str] = field(default_factory=set)

    def as_type(self, name: str, element: int) -> str:
        """Give a value in the wanted type, casting it where it is in the other."""
        if self.stored.get(name, element) == element:
            return name
        cast = f"{name}/{'fp16' if element == onnx_module().TensorProto.FLOAT16 else 'fp32'}"
        if cast not in self.casts:
            self.casts.add(cast)
            self.nodes.append(onnx_module().helper.make_node("Cast", [name], [cast], name=cast, to=element))
        return cast


def overflowing(model: onnx.ModelProto, samples: Sequence[tuple[Tensor, ...]]) -> frozenset[str]:
    """Name the outputs of nodes that read or make values past `LIMIT` on the samples, run in fp32."""
    module = onnx_module()
    floats = _floats(model)
    open_model = module.ModelProto()
    open_model.CopyFrom(model)
    made = [name for node in model.graph.node for name in node.output if name in floats]
    del open_model.graph.output[:]
    open_model.graph.output.extend(
        module.helper.make_tensor_value_info(name, module.TensorProto.FLOAT, None) for name in made
    )
    large = {t.name for t in model.graph.initializer if t.name in floats and _peak(_array(t)) > LIMIT}
    session = ort_session(open_model.SerializeToString(), optimise=False)
    for sample in samples:
        feed = {value.name: x.numpy() for value, x in zip(model.graph.input, sample, strict=True)}
        large |= {name for name, value in zip(made, session.run(None, feed), strict=True) if _peak(value) > LIMIT}
    return frozenset(node.output[0] for node in model.graph.node if large & {*node.input, *node.output})


def to_fp16(model: onnx.ModelProto, blocked: Set[str], *, keep_fp32_io: bool) -> tuple[onnx.ModelProto, int]:
    """Convert a model to fp16 but for the nodes of `ALWAYS_FP32` and those whose output is in `blocked`.

    Returns the model and how many nodes stay in fp32. With `keep_fp32_io` its inputs and outputs stay fp32.

    Raises:
        ExportError: it has control flow.
    """
    module = onnx_module()
    full, half = module.TensorProto.FLOAT, module.TensorProto.FLOAT16
    if any(a.type in (a.GRAPH, a.GRAPHS) for node in model.graph.node for a in node.attribute):
        raise ExportError("the network has control flow, which can't be converted to fp16; export it in fp32")
    floats = _floats(model)
    converted = module.ModelProto()
    converted.CopyFrom(model)
    graph = converted.graph
    outer = full if keep_fp32_io else half
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name in floats}
    sheet = _Sheet({value.name: outer for value in graph.input if value.name in floats})
    results = {value.name for value in graph.output if value.name in floats}
    count = 0
    del graph.node[:]
    needed: dict[str, set[int]] = {}
    for original in model.graph.node:
        node = module.NodeProto()
        node.CopyFrom(original)
        stays = node.op_type in ALWAYS_FP32 or node.output[0] in blocked
        element = full if stays else half
        count += stays
        for position, name in enumerate(original.input):
            if name not in floats:
                continue
            wanted = full if position in FP32_INPUTS.get(node.op_type, ()) else element
            if name in constants:
                needed.setdefault(name, set()).add(wanted)
                node.input[position] = name if wanted == full else f"{name}/fp16"
            else:
                node.input[position] = sheet.as_type(name, wanted)
        _set_type(node, full, element)
        for position, name in enumerate(original.output):
            if name not in floats:
                continue
            sheet.stored[name] = element
            if name in results and element != outer:
                node.output[position] = f"{name}/inner"
                sheet.stored[f"{name}/inner"] = element
        sheet.nodes.append(node)
        for name in set(original.output) & results:
            if sheet.stored[name] != outer:
                sheet.nodes.append(
                    module.helper.make_node("Cast", [f"{name}/inner"], [name], name=f"{name}/cast", to=outer)
                )
                sheet.stored[name] = outer
    graph.node.extend(sheet.nodes)
    _store_constants(graph, constants, needed, half)
    for value in (*graph.input, *graph.output):
        if value.name in floats:
            value.type.tensor_type.elem_type = outer
    return converted, count


def _store_constants(
    graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto], needed: Mapping[str, set[int]], half: int
) -> None:
    kept = [tensor for tensor in graph.initializer if tensor.name not in constants]
    for name, tensor in constants.items():
        for element in sorted(needed.get(name, ())):
            if element == half:
                with np.errstate(over="ignore"):  # what overflows is not finite, and fails the comparison
                    narrow = _array(tensor).astype(np.float16)
                kept.append(onnx_module().numpy_helper.from_array(narrow, f"{name}/fp16"))
            else:
                kept.append(tensor)
    copies = [onnx_module().TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def _set_type(node: onnx.NodeProto, full: int, element: int) -> None:
    """Let a cast to floating point cast to the type its result is stored in."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == full:
            attribute.i = element


def _floats(model: onnx.ModelProto) -> set[str]:
    """Names of the fp32 values."""
    inferred = onnx_module().shape_inference.infer_shapes(model, data_prop=True).graph
    full = onnx_module().TensorProto.FLOAT
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    found = {value.name for value in values if value.type.tensor_type.elem_type == full}
    return found | {tensor.name for tensor in inferred.initializer if tensor.data_type == full}


def _array(tensor: onnx.TensorProto) -> NDArray[Any]:
    array: NDArray[Any] = onnx_module().numpy_helper.to_array(tensor)
    return array


def _peak(array: NDArray[Any]) -> float:
    return float(np.abs(array).max()) if array.size else 0.0
