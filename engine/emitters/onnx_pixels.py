"""Integer pixels in and out of an ONNX model: the conversions become part of what the engine compiles.

Converted outside, the float result of an upscaler is written and read several times more; on ESPCN that took a third
as long as the network itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tilefuse.errors import BackendError
from tilefuse.importers.onnx_files import onnx_module

if TYPE_CHECKING:
    import onnx

PIXELS, RESULT, CHECK = "tilefuse/pixels", "tilefuse/result", "tilefuse/check"


def with_pixels(
    model: onnx.ModelProto, dtype: np.dtype[np.uint8] | np.dtype[np.uint16], scale: float = 1.0
) -> onnx.ModelProto:
    """Return an image model [N, C, H, W] of fixed shape that takes and gives [N, H, W, C] integers.

    Integers mean 0..1, and `model` takes `scale` times that; the result is rounded to even and clipped. A second output
    is the sum of the float result: it is finite exactly where the network overflowed nowhere.

    Raises:
        BackendError: more than one input or output, or one that is no image.
    """
    helper, proto = onnx_module().helper, onnx_module().TensorProto
    graph = model.graph
    if len(graph.input) != 1 or len(graph.output) != 1 or len(graph.input[0].type.tensor_type.shape.dim) != 4:
        raise BackendError("only a model of one image input and one image output takes pixels")
    source, result = graph.input[0], graph.output[0].name
    batch, channels, height, width = (dim.dim_value for dim in source.type.tensor_type.shape.dim)
    full = float(np.iinfo(dtype).max)
    kind = proto.UINT8 if dtype == np.uint8 else proto.UINT16

    def number(name: str, value: float) -> onnx.TensorProto:
        return helper.make_tensor(f"tilefuse/{name}", proto.FLOAT, (), [value])

    def node(operator: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(operator, inputs, [output], name=output, **attributes)

    before = [
        node("Transpose", [PIXELS], "tilefuse/planes", perm=[0, 3, 1, 2]),
        node("Cast", ["tilefuse/planes"], "tilefuse/values", to=proto.FLOAT),
        node("Div", ["tilefuse/values", "tilefuse/divisor"], source.name),
    ]
    after = [
        node("ReduceSum", [result], CHECK, keepdims=0),
        node("Mul", [result, "tilefuse/full"], "tilefuse/scaled"),
        node("Round", ["tilefuse/scaled"], "tilefuse/rounded"),
        node("Clip", ["tilefuse/rounded", "tilefuse/zero", "tilefuse/full"], "tilefuse/clipped"),
        node("Cast", ["tilefuse/clipped"], "tilefuse/integers", to=kind),
        node("Transpose", ["tilefuse/integers"], RESULT, perm=[0, 2, 3, 1]),
    ]
    wrapped = helper.make_graph(
        [*before, *graph.node, *after],
        graph.name,
        [helper.make_tensor_value_info(PIXELS, kind, (batch, height, width, channels))],
        [helper.make_tensor_value_info(RESULT, kind, None), helper.make_tensor_value_info(CHECK, proto.FLOAT, ())],
        [*graph.initializer, number("divisor", full / scale), number("full", full), number("zero", 0.0)],
    )
    return helper.make_model(wrapped, opset_imports=model.opset_import, ir_version=model.ir_version)
