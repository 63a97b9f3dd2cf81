"""Chains of pointwise arithmetic in one launch: whatever no convolution can take as its epilogue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.operators import operator
from tilefuse.kernels.stages import narrow
from tilefuse.kernels.tensors import INTERPRETED, RowTile, bind, check_image, check_place, result, row_tile
from tilefuse.kernels.toolchain import jit, narrowed, tl

MOST_INPUTS = 6
_UNARY = (
    *("relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "hardswish", "hardsigmoid", "tanh", "sigmoid"),
    *("softplus", "mish", "abs", "neg", "exp", "log", "sqrt", "rsqrt", "square", "reciprocal", "erf"),
    *("clamp_low", "clamp_high", "constant"),
)
OPS = (*_UNARY, "add", "sub", "mul", "div", "max", "min", "prelu")


@dataclass(frozen=True)
class Step:
    """One instruction: an op of `OPS` on the values `a` and `b`, with `number` its slope, limit or constant.

    Values are numbered: the inputs first, then the result of each step.
    """

    op: str
    a: int = 0
    b: int = 0
    number: float = 0.0


def elementwise(inputs: Sequence[Tensor], steps: Sequence[Step], *, out: Tensor | None = None) -> Tensor:
    """Run `steps` on images [N, H, W, C], broadcast against each other, in float32, and store the last result.

    Without steps it copies the first input. The result has the first input's type unless `out` has another. `out` may
    be an input.

    Raises:
        BackendError: a type, device or shape the kernel doesn't take, or a step that reads what isn't there.
    """
    if not 1 <= len(inputs) <= MOST_INPUTS:
        raise BackendError(f"elementwise: {len(inputs)} inputs; 1 to {MOST_INPUTS} are accepted")
    for position, x in enumerate(inputs):
        check_image("elementwise", f"input {position}", x, like=inputs[0])
    for position, step in enumerate(steps):
        if step.op not in OPS or not 0 <= min(step.a, step.b) <= max(step.a, step.b) < len(inputs) + position:
            raise BackendError(f"elementwise: step {position} is {step}; an op of {', '.join(OPS)} on earlier values")
    try:
        shape = torch.broadcast_shapes(*(x.shape for x in inputs))
    except RuntimeError as error:
        given = ", ".join(str(list(x.shape)) for x in inputs)
        raise BackendError(f"elementwise: inputs of {given}; sizes that broadcast are accepted") from error
    out = result("elementwise", inputs[0], (shape[0], shape[1], shape[2], shape[3]), out, in_place=True)
    for position, x in enumerate(inputs):
        check_place("elementwise", out, x, f"input {position}")
    if out.numel():
        codes = [part for step in steps for part in (OPS.index(step.op), step.a, step.b)]
        _launch([x.expand(shape) for x in inputs], out, codes, [step.number for step in steps])
    return out


def elementwise_ref(inputs: Sequence[Tensor], steps: Sequence[Step]) -> Tensor:
    """Compute the same in plain torch."""
    values = [*torch.broadcast_tensors(*(x.float() for x in inputs))]
    for step in steps:
        values.append(_step_ref(step, values[step.a], values[step.b]))
    last: Tensor = values[-1 if steps else 0]
    return narrowed(last, inputs[0].dtype)


def _step_ref(step: Step, a: Tensor, b: Tensor) -> Tensor:
    match step.op:
        case "leaky_relu" | "elu":
            made: Tensor = getattr(F, step.op)(a, step.number)
        case "gelu_tanh":
            made = F.gelu(a, approximate="tanh")
        case "clamp_low":
            made = a.clamp(min=step.number)
        case "clamp_high":
            made = a.clamp(max=step.number)
        case "constant":
            made = torch.full_like(a, step.number)
        case "prelu":
            made = torch.where(a < 0, b * a, a)
        case "add" | "sub" | "mul" | "div":
            made = getattr(torch, step.op)(a, b)
        case "max" | "min":
            made = getattr(torch, f"{step.op}imum")(a, b)
        case "abs" | "neg" | "exp" | "log" | "sqrt" | "rsqrt" | "square" | "reciprocal" | "erf" | "tanh" | "sigmoid":
            made = getattr(torch, step.op)(a)
        case _:
            made = getattr(F, step.op)(a)
    return made


def pick_config(rows: int, columns: int, *, interpreted: bool = False) -> RowTile:
    """Choose the tile of the result that one program makes."""
    return row_tile(rows, columns, interpreted=interpreted)


def plan_launch(inputs: list[Tensor], out: Tensor, codes: list[int], numbers: list[float]) -> Launch:
    """Choose the configuration and the arguments of a checked call; meta tensors do."""
    n, h, w, c = out.shape
    config = pick_config(n * h, w * c, interpreted=INTERPRETED)
    given = [*inputs, *[inputs[0]] * (MOST_INPUTS - len(inputs))]
    strides = [stride for x in given for stride in x.stride()]
    return bind("elementwise", _elementwise_kernel, config.grid(n * h, w * c), config,
        *given, out, n * h, h, w, *strides, *out.stride(), c, len(inputs), tuple(codes), tuple(numbers),
        config.rows, config.columns,
    )  # fmt: skip


@operator("tilefuse::elementwise", writes=("out",))
def _launch(inputs: list[Tensor], out: Tensor, codes: list[int], numbers: list[float]) -> Iterable[Launch]:
    return (plan_launch(inputs, out, codes, numbers),)


@jit
def _tanh(a):
    return 2.0 * tl.sigmoid(2.0 * a) - 1.0


@jit
def _softplus(a):
    return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL) + tl.log(1.0 + tl.exp(-tl.abs(a)))


@jit
def _above(a, low):
    # A NaN has to come out again: it is how an overflow is noticed.
    return tl.maximum(a, low, propagate_nan=tl.PropagateNan.ALL)


@jit
def _below(a, high):
    return tl.minimum(a, high, propagate_nan=tl.PropagateNan.ALL)


@jit
def _step(OP: tl.constexpr, a, b, NUMBER: tl.constexpr):
    if OP == 0:  # relu
        return _above(a, 0.0)
    elif OP == 1:  # leaky_relu
        return tl.where(a < 0, a * NUMBER, a)
    elif OP == 2:  # elu
        return tl.where(a > 0, a, NUMBER * (tl.exp(_below(a, 0.0)) - 1.0))
    elif OP == 3:  # gelu
        return 0.5 * a * (1.0 + tl.erf(a * 0.7071067811865476))
    elif OP == 4:  # gelu_tanh
        return 0.5 * a * (1.0 + _tanh(0.7978845608028654 * (a + 0.044715 * a * a * a)))
    elif OP == 5:  # silu
        return a * tl.sigmoid(a)
    elif OP == 6:  # hardswish
        return a * _below(_above(a + 3.0, 0.0), 6.0) / 6.0
    elif OP == 7:  # hardsigmoid
        return _below(_above(a + 3.0, 0.0), 6.0) / 6.0
    elif OP == 8:  # tanh
        return _tanh(a)
    elif OP == 9:  # sigmoid
        return tl.sigmoid(a)
    elif OP == 10:  # softplus
        return _softplus(a)
    elif OP == 11:  # mish
        return a * _tanh(_softplus(a))
    elif OP == 12:  # abs
        return tl.abs(a)
    elif OP == 13:  # neg
        return -a
    elif OP == 14:  # exp
        return tl.exp(a)
    elif OP == 15:  # log
        return tl.log(a)
    elif OP == 16:  # sqrt
        return tl.sqrt_rn(a)
    elif OP == 17:  # rsqrt
        return 1.0 / tl.sqrt_rn(a)
    elif OP == 18:  # square
        return a * a
    elif OP == 19:  # reciprocal
        return 1.0 / a
    elif OP == 20:  # erf
        return tl.erf(a)
    elif OP == 21:  # clamp_low
        return _above(a, NUMBER)
    elif OP == 22:  # clamp_high
        return _below(a, NUMBER)
    elif OP == 23:  # constant
        return tl.full((1, 1), NUMBER, tl.float32)
    elif OP == 24:  # add
        return a + b
    elif OP == 25:  # sub
        return a - b
    elif OP == 26:  # mul
        return a * b
    elif OP == 27:  # div
        return a / b
    elif OP == 28:  # max
        return _above(a, b)
    elif OP == 29:  # min
        return _below(a, b)
    else:  # prelu
        return tl.where(a < 0, a * b, a)


@jit
def _read(source, mask):
    return tl.load(source, mask=mask).to(tl.float32)  # [ROWS, COLUMNS]


@jit
def _with(values, value):
    return values + (value,)


@jit
def _elementwise_kernel(
    x0, x1, x2, x3, x4, x5, out_ptr, all_rows, height, width,
    n0, h0, w0, c0, n1, h1, w1, c1, n2, h2, w2, c2, n3, h3, w3, c3, n4, h4, w4, c4, n5, h5, w5, c5, on, oh, ow, oc,
    C: tl.constexpr, INPUTS: tl.constexpr, CODES: tl.constexpr, NUMBERS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    element = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < all_rows) & (element < width * C)
    n, y = row // height, row % height
    x, c = (element // C).to(tl.int64), (element % C).to(tl.int64)
    values = (_read(x0 + n * n0 + y * h0 + x * w0 + c * c0, mask),)
    if INPUTS > 1:
        values = _with(values, _read(x1 + n * n1 + y * h1 + x * w1 + c * c1, mask))
    if INPUTS > 2:
        values = _with(values, _read(x2 + n * n2 + y * h2 + x * w2 + c * c2, mask))
    if INPUTS > 3:
        values = _with(values, _read(x3 + n * n3 + y * h3 + x * w3 + c * c3, mask))
    if INPUTS > 4:
        values = _with(values, _read(x4 + n * n4 + y * h4 + x * w4 + c * c4, mask))
    if INPUTS > 5:
        values = _with(values, _read(x5 + n * n5 + y * h5 + x * w5 + c * c5, mask))
    last = values[0]
    for i in tl.static_range(len(NUMBERS)):
        last = _step(CODES[3 * i], values[CODES[3 * i + 1]], values[CODES[3 * i + 2]], NUMBERS[i])
        values = _with(values, last)
    last = tl.broadcast_to(last, (ROWS, COLUMNS))
    tl.store(out_ptr + n * on + y * oh + x * ow + c * oc, narrow(last, out_ptr.dtype.element_ty), mask=mask)
