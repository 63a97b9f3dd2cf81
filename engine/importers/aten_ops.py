"""Converters of ATen calls that compute, and the one table of all converters by op and overload."""

from __future__ import annotations

from typing import Any, Literal

from torch import fx

from tilefuse.importers.aten_call import Call, Constant, Converter, Value, identity, pair
from tilefuse.importers.aten_layout import LAYOUT
from tilefuse.importers.aten_statistics import STATISTICS
from tilefuse.ops import (
    NO_PADDING,
    Activation,
    Binary,
    Clamp,
    Conv2d,
    ConvTranspose2d,
    Linear,
    Op,
    Pair,
    PRelu,
    Sides,
    Unary,
)


def _convolution(call: Call) -> Value:
    weight = call.constant("weight").tensor
    if weight.ndim != 4 or len(call.shapes("input")[0]) != 4:
        raise call.refused("is not a convolution of [N, C, H, W]")
    inputs = [call.value("input"), call.value("weight")]
    if call.raw("bias") is not None:
        call.constant("bias")
        inputs.append(call.value("bias"))
    stride, dilation, groups = pair(call.get("stride")), pair(call.get("dilation")), call.get("groups")
    sides = _sides(call.get("padding"), (weight.shape[2], weight.shape[3]), dilation)
    if call.get("transposed", call.target.startswith("conv_transpose")):
        extra = pair(call.get("output_padding"))
        return call.emit(ConvTranspose2d(stride, sides, extra, dilation, groups), *inputs)
    return call.emit(Conv2d(stride, sides, dilation, groups), *inputs)


def _sides(padding: Any, kernel: Pair, dilation: Pair) -> Sides:
    if padding == "valid":
        return NO_PADDING
    if padding != "same":
        return pair(padding) * 2
    # torch puts the odd row or column of an even kernel after the image.
    (y, x) = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return y // 2, x // 2, y - y // 2, x - x // 2


def _linear(source: str, weight: str, bias: str | None) -> Converter:
    def convert(call: Call) -> Value:
        if len(call.shapes(source)[0]) != 2 or call.constant(weight).tensor.ndim != 2:
            raise call.refused("multiplies something else than [N, C] by a matrix of weights")
        op = Linear(float(call.get("alpha", 1)), float(call.get("beta", 1)), transpose_weight=weight == "weight")
        inputs = [call.value(source), call.value(weight)]
        if bias is not None and call.raw(bias) is not None:
            call.constant(bias)
            inputs.append(call.value(bias))
        return call.emit(op, *inputs)

    return convert


def _simple(op: Op) -> Converter:
    return lambda call: call.emit(op, call.value(call.first))


def _leaky_relu(call: Call) -> Value:
    return call.emit(Activation("leaky_relu", float(call.get("negative_slope"))), call.value("self"))


def _elu(call: Call) -> Value:
    if (call.get("scale", 1), call.get("input_scale", 1)) != (1, 1):
        raise call.refused("has a scale or an input_scale other than 1")
    return call.emit(Activation("elu", float(call.get("alpha"))), call.value("self"))


def _selu(call: Call) -> Value:
    # scale · elu(x, alpha): Klambauer et al., "Self-Normalizing Neural Networks", 2017.
    inner = call.emit(Activation("elu", 1.6732632423543772848), call.value("self"))
    return call.emit(Binary("mul"), inner, call.scalar(1.0507009873554804934))


def _gelu(call: Call) -> Value:
    return call.emit(Activation("gelu_tanh" if call.get("approximate") == "tanh" else "gelu"), call.value("self"))


def _softplus(call: Call) -> Value:
    if (call.get("beta"), call.get("threshold")) != (1, 20):
        raise call.refused("has a beta other than 1 or a threshold other than 20")
    return call.emit(Activation("softplus"), call.value("self"))


def _prelu(call: Call) -> Value:
    slope, rank = call.constant("weight"), len(call.shapes("self")[0])
    shaped = slope.tensor.reshape(-1, *[1] * (rank - 2))
    return call.emit(PRelu(), call.value("self"), call.weight(shaped, slope.name))


def _clamp(low: str | None, high: str | None) -> Converter:
    def convert(call: Call) -> Value:
        limits = (None if side is None else call.get(side) for side in (low, high))
        return call.emit(Clamp(*(None if limit is None else float(limit) for limit in limits)), call.value("self"))

    return convert


def _pow(call: Call) -> Value:
    kinds: dict[float, Literal["square", "sqrt", "reciprocal", "rsqrt"]]
    kinds = {2.0: "square", 0.5: "sqrt", -1.0: "reciprocal", -0.5: "rsqrt"}
    exponent = float(call.get("exponent"))
    if exponent == 1.0:
        return identity(call)
    if exponent not in kinds:
        raise call.refused(f"has the exponent {exponent:g}; 2, 1/2, -1 and -1/2 are supported")
    return call.emit(Unary(kinds[exponent]), call.value("self"))


def _binary(
    kind: Literal["add", "sub", "mul", "div", "max", "min"], first: str = "self", second: str = "other"
) -> Converter:
    def convert(call: Call) -> Value:
        a, b, alpha = _operand(call, first), _operand(call, second), call.get("alpha", 1)
        # torch: self ± alpha · other, and rsub: other - alpha · self; alpha is always of the second.
        if alpha != 1:
            b = call.emit(Binary("mul"), b, call.scalar(alpha))
        return call.emit(Binary(kind), a, b)

    return convert


def _operand(call: Call, name: str) -> str:
    """Give an operand of arithmetic; a number or a constant of one element becomes a weight of shape []."""
    argument, result = call.raw(name), call.node.meta["val"]
    if not isinstance(argument, fx.Node):
        return call.scalar(call.get(name))
    value = call.values[argument]
    if not isinstance(value, Constant):
        return call.value(name)
    tensor = value.tensor.to(result.dtype)
    if tensor.numel() == 1 and tensor.ndim <= result.ndim:
        tensor = tensor.reshape(())
    elif tensor.ndim == result.ndim and tensor.shape[0] == 1:
        tensor = tensor[0]
    return call.weight(tensor, value.name)


ARITHMETIC: dict[str, Converter] = {
    "conv2d.default": _convolution,
    "conv2d.padding": _convolution,
    "convolution.default": _convolution,
    "conv_transpose2d.input": _convolution,
    "linear.default": _linear("input", "weight", "bias"),
    "addmm.default": _linear("mat1", "mat2", "self"),
    "mm.default": _linear("self", "mat2", None),
    "matmul.default": _linear("self", "other", None),
    "relu.default": _simple(Activation("relu")),
    "relu6.default": _simple(Clamp(0.0, 6.0)),
    "leaky_relu.default": _leaky_relu,
    "prelu.default": _prelu,
    "elu.default": _elu,
    "celu.default": _elu,
    "selu.default": _selu,
    "gelu.default": _gelu,
    "silu.default": _simple(Activation("silu")),
    "hardswish.default": _simple(Activation("hardswish")),
    "hardsigmoid.default": _simple(Activation("hardsigmoid")),
    "tanh.default": _simple(Activation("tanh")),
    "sigmoid.default": _simple(Activation("sigmoid")),
    "softplus.default": _softplus,
    "mish.default": _simple(Activation("mish")),
    "clamp.default": _clamp("min", "max"),
    "clip.default": _clamp("min", "max"),
    "clamp_min.default": _clamp("min", None),
    "clamp_max.default": _clamp(None, "max"),
    "hardtanh.default": _clamp("min_val", "max_val"),
    "abs.default": _simple(Unary("abs")),
    "neg.default": _simple(Unary("neg")),
    "erf.default": _simple(Unary("erf")),
    "exp.default": _simple(Unary("exp")),
    "log.default": _simple(Unary("log")),
    "sqrt.default": _simple(Unary("sqrt")),
    "rsqrt.default": _simple(Unary("rsqrt")),
    "square.default": _simple(Unary("square")),
    "reciprocal.default": _simple(Unary("reciprocal")),
    "pow.Tensor_Scalar": _pow,
    "add.Tensor": _binary("add"),
    "add.Scalar": _binary("add"),
    "sub.Tensor": _binary("sub"),
    "sub.Scalar": _binary("sub"),
    "rsub.Tensor": _binary("sub", "other", "self"),
    "rsub.Scalar": _binary("sub", "other", "self"),
    "mul.Tensor": _binary("mul"),
    "mul.Scalar": _binary("mul"),
    "multiply.Tensor": _binary("mul"),
    "div.Tensor": _binary("div"),
    "div.Scalar": _binary("div"),
    "maximum.default": _binary("max"),
    "minimum.default": _binary("min"),
}

CONVERTERS: dict[str, Converter] = ARITHMETIC | STATISTICS | LAYOUT
