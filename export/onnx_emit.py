"""Graph → ONNX for what has no module of its own, or whose traced form could not be tiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilefuse.emitters import onnx as emitter
from tilefuse.errors import BackendError, ExportError
from tilefuse.export.onnx_graph import rename, tidy
from tilefuse.export.onnx_inputs import Signature
from tilefuse.footprint import Axis
from tilefuse.model import Model

if TYPE_CHECKING:
    import onnx


def emit(model: Model, signature: Signature, output: str, *, opset: int) -> onnx.ModelProto:
    """Write a model's graph under the agreed names, with the open sizes named as a traced file has them.

    Raises:
        ExportError: there is no graph, or ONNX has no form of an op at this opset.
    """
    if model.graph is None:
        raise ExportError(f"{model.name} can't be written as ONNX: {model.uncaptured}")
    try:
        made = emitter.to_onnx(model.graph, opset=opset)
    except BackendError as error:
        raise ExportError(f"{model.name} can't be written as ONNX: {error}") from error
    tidy(made, model.name)
    own = [value.name for value in (*made.graph.input, *made.graph.output)]
    rename(made, dict(zip(own, (*signature.names, output), strict=True)))
    for slot, value in zip(signature.slots, made.graph.input, strict=True):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        for axis, name in ((2, "height"), (3, "width")) if slot.is_image else ():
            dims[axis].dim_param = _linear(signature.alignment, name, 0)
    dims = made.graph.output[0].type.tensor_type.shape.dim
    dims[0].dim_param = "batch"
    if model.footprint is not None:
        for axis, name, geometry in ((2, "height", model.footprint.y), (3, "width", model.footprint.x)):
            dims[axis].dim_param = _linear(_multiple(geometry, signature.alignment), name, geometry.offset)
    return made


def _multiple(axis: Axis, alignment: int) -> int:
    # The alignment holds every denominator of the scale.
    return int(axis.scale * alignment)


def _linear(factor: int, name: str, offset: int) -> str:
    """Write factor·name + offset as torch does."""
    product = name if factor == 1 else f"{factor}*{name}"
    return product if offset == 0 else f"{product} {'+' if offset > 0 else '-'} {abs(offset)}"
