"""The table of ONNX ops, and the pointwise ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np

from tilefuse.importers import onnx_layers as layers
from tilefuse.importers import onnx_layout as layout
from tilefuse.importers import onnx_quantised as quantised
from tilefuse.importers.onnx_builder import Above, Constant, Value
from tilefuse.importers.onnx_call import Call
from tilefuse.importers.onnx_resize import resize, upsample
from tilefuse.ops import Activation, ActivationKind, Binary, Clamp, Mean, PRelu, Round, Unary

Converter = Callable[..., Value | tuple[Value, ...]]


def _activation(call: Call, *, kind: ActivationKind) -> Value:
    return call.add(Activation(kind), call.value(0))


def _leaky_relu(call: Call, *, alpha: float = 0.01) -> Value:
    return call.add(Activation("leaky_relu", alpha), call.value(0))


def _elu(call: Call, *, alpha: float = 1.0) -> Value:
    return call.add(Activation("elu", alpha), call.value(0))


def _gelu(call: Call, *, approximate: str = "none") -> Value:
    kinds: dict[str, ActivationKind] = {"none": "gelu", "tanh": "gelu_tanh"}
    if approximate not in kinds:
        raise call.refuse(f"attribute approximate = {approximate} is not supported")
    return call.add(Activation(kinds[approximate]), call.value(0))


def _hard_sigmoid(call: Call, *, alpha: float = 0.2, beta: float = 0.5) -> Value:
    x = call.value(0)
    if np.float32(alpha) == np.float32(1 / 6) and beta == 0.5:
        return call.add(Activation("hardsigmoid"), x)
    scaled = call.add(Binary("mul"), x, call.number(alpha))
    return call.add(Clamp(0.0, 1.0), call.add(Binary("add"), scaled, call.number(beta)))


def _prelu(call: Call) -> Value:
    return call.add(PRelu(), call.value(0), call.value(1))


def _clip(call: Call, *, min: float | None = None, max: float | None = None) -> Value:
    x = call.value(0)
    bounds: list[float | None] = [min, max]
    kinds: tuple[Literal["max", "min"], ...] = ("max", "min")
    for index, (kind, endless) in enumerate(zip(kinds, (-np.inf, np.inf), strict=True)):
        if not call.has(1 + index):
            continue
        if isinstance(call.value(1 + index), Constant):
            bounds[index] = call.scalar(1 + index, ("min", "max")[index])
            bounds[index] = None if bounds[index] == endless else bounds[index]
        else:
            x = call.add(Binary(kind), x, call.value(1 + index))
    for bound in bounds:
        if bound is not None and np.isnan(bound):
            raise call.refuse("a bound is NaN")
    low, high = bounds
    return call.add(Clamp(low, high), x) if bounds != [None, None] else x


def _unary(call: Call, *, kind: Literal["abs", "erf", "exp", "log", "neg", "reciprocal", "sqrt"]) -> Value:
    return call.add(Unary(kind), call.value(0))


def _binary(call: Call, *, kind: Literal["add", "sub", "mul", "div"]) -> Value:
    return call.add(Binary(kind), call.value(0), call.value(1))


def _chain(call: Call, *, kind: Literal["add", "max", "min"]) -> Value:
    first, *rest = call.values()
    for value in rest:
        first = call.add(Binary(kind), first, value)
    return first


def _pow(call: Call) -> Value:
    x, exponent = call.value(0), call.scalar(1, "the exponent")
    if exponent == 1:
        return x
    if exponent == 2:
        return call.add(Unary("square"), x)
    if exponent == 3:
        return call.add(Binary("mul"), call.add(Unary("square"), x), x)
    if exponent == 0.5:
        return call.add(Unary("sqrt"), x)
    if exponent == -0.5:
        return call.add(Unary("rsqrt"), x)
    if exponent == -1:
        return call.add(Unary("reciprocal"), x)
    raise call.refuse(f"the exponent {exponent:g} is not supported; -1, -0.5, 0.5, 1, 2 and 3 are")


def _mish(call: Call) -> Value:
    return call.add(Activation("mish"), call.value(0))


def _reduce_mean(call: Call, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Value:
    x = call.value(0)
    given = call.ints(1, "axes") if call.has(1) else tuple(axes or ())
    if not given and noop_with_empty_axes:
        return x
    dims = tuple(axis % len(x.shape) for axis in given) or tuple(range(len(x.shape)))
    if len(set(dims)) < len(dims):
        raise call.refuse(f"axes = {list(given)} name an axis twice")
    return call.add(Mean(dims, bool(keepdims)), x)


def _cast(call: Call, *, to: int, saturate: int = 1, round_mode: str = "up") -> Value:
    del saturate, round_mode  # both concern 8-bit floats, refused below
    floating = {1: "FLOAT", 10: "FLOAT16", 11: "DOUBLE", 16: "BFLOAT16"}
    if to not in floating:
        raise call.refuse(f"attribute to = {to}: an image can only be cast to a floating type of 16 to 64 bits")
    return call.value(0)


def _greater(call: Call) -> Value:
    x = call.value(0)
    return Above(call.builder.tensor(x), call.scalar(1, "the threshold"), x.shape)


def _where(call: Call) -> Value:
    condition, x, other = call.value(0), call.value(1), call.value(2)
    # torch's softplus is linear past a threshold from which float32 can't tell the two apart.
    if isinstance(condition, Above) and condition.threshold >= 20 and condition.x == x:
        made = next((node for node in call.builder.nodes if node.output == getattr(other, "name", None)), None)
        if made is not None and made.op == Activation("softplus") and made.inputs == (condition.x.name,):
            return other
    raise call.refuse("choosing between images by a run-time condition is not supported")


OPS: dict[str, Converter] = {
    "Abs": partial(_unary, kind="abs"),
    "Add": partial(_binary, kind="add"),
    "AveragePool": layers.average_pool,
    "BatchNormalization": layers.batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": layout.concat,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "DepthToSpace": layout.depth_to_space,
    "DequantizeLinear": quantised.dequantize_linear,
    "Div": partial(_binary, kind="div"),
    "Dropout": layout.dropout,
    "Elu": _elu,
    "Erf": partial(_unary, kind="erf"),
    "Exp": partial(_unary, kind="exp"),
    "Expand": layout.expand,
    "Flatten": layout.flatten,
    "Gather": layout.gather,
    "Gelu": _gelu,
    "Gemm": layers.gemm,
    "GlobalAveragePool": layers.global_average_pool,
    "GlobalMaxPool": layers.global_max_pool,
    "Greater": _greater,
    "GroupNormalization": layers.group_normalization,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": partial(_activation, kind="hardswish"),
    "Identity": layout.identity,
    "InstanceNormalization": layers.instance_normalization,
    "LeakyRelu": _leaky_relu,
    "Log": partial(_unary, kind="log"),
    "MatMul": layers.mat_mul,
    "Max": partial(_chain, kind="max"),
    "MaxPool": layers.max_pool,
    "Min": partial(_chain, kind="min"),
    "Mish": _mish,
    "Mul": partial(_binary, kind="mul"),
    "Neg": partial(_unary, kind="neg"),
    "Round": lambda call: call.add(Round(), call.value(0)),
    "PRelu": _prelu,
    "Pad": layout.pad,
    "Pow": _pow,
    "Reciprocal": partial(_unary, kind="reciprocal"),
    "QuantizeLinear": quantised.quantize_linear,
    "ReduceMean": _reduce_mean,
    "Relu": partial(_activation, kind="relu"),
    "Reshape": layout.reshape,
    "Resize": resize,
    "Shape": layout.shape,
    "Sigmoid": partial(_activation, kind="sigmoid"),
    "Slice": layout.slice_,
    "Softplus": partial(_activation, kind="softplus"),
    "SpaceToDepth": layout.space_to_depth,
    "Split": layout.split,
    "Sqrt": partial(_unary, kind="sqrt"),
    "Squeeze": layout.squeeze,
    "Sub": partial(_binary, kind="sub"),
    "Sum": partial(_chain, kind="add"),
    "Tanh": partial(_activation, kind="tanh"),
    "Tile": layout.tile,
    "Transpose": layout.transpose,
    "Unsqueeze": layout.unsqueeze,
    "Upsample": upsample,
    "Where": _where,
}
