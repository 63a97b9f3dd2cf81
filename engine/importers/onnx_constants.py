"""Folding: ONNX ops run at once where every input is known, be it a number or a size that depends on the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilefuse.errors import ModelError
from tilefuse.importers.onnx_arithmetic import (
    bounded,
    divided,
    each,
    elementwise,
    equal,
    larger,
    modulo,
    no_sizes,
    power,
    quotient,
    smaller,
    truncate,
)
from tilefuse.importers.onnx_files import onnx_module, tensor_array
from tilefuse.importers.onnx_sizes import Size, ceil, compare, floor

Array = NDArray[Any]


def fold(op: str, inputs: Sequence[Array | None], attributes: dict[str, Any]) -> tuple[Array, ...]:
    """Run an op on known values.

    Raises:
        ModelError: the op can't be folded, or its result would be too large.
    """
    try:
        result = FOLDS[op](*inputs, **attributes)
    except (TypeError, ValueError, IndexError, ArithmeticError, AttributeError) as error:
        raise ModelError(f"the constants of {op} do not fit together: {error}") from error
    return tuple(np.asarray(r) for r in result) if isinstance(result, tuple | list) else (np.asarray(result),)


def _axes(axes: Any, rank: int) -> tuple[int, ...]:
    return tuple(int(axis) % rank for axis in np.asarray(axes).reshape(-1))


def _constant(**attributes: Any) -> Array:
    ((kind, value),) = attributes.items()
    match kind:
        case "value":
            return tensor_array(value)
        case "value_float" | "value_floats":
            return np.asarray(value, dtype=np.float32)
        case "value_int" | "value_ints":
            return np.asarray(value, dtype=np.int64)
    raise ModelError(f"attribute {kind} of Constant is not supported")


def _cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    del saturate, round_mode  # both concern 8-bit floats, refused below
    name = onnx_module().TensorProto.DataType.Name(to)
    kinds = {
        "FLOAT",
        "DOUBLE",
        "FLOAT16",
        "BFLOAT16",
        "BOOL",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT32",
        "UINT64",
    }
    if name not in kinds:
        raise ModelError(f"attribute to = {name} is not supported")
    if x.dtype != object:
        return x.astype(onnx_module().helper.tensor_dtype_to_np_dtype(to))
    if "INT" in name:
        return np.asarray(each(lambda a: truncate(a))(x), dtype=object)
    if name == "BOOL":
        raise ModelError("attribute to = BOOL of a size is not supported")
    # A float marks that a division of it does not truncate; a size stays exact.
    return np.asarray(each(lambda a: a if isinstance(a, Size) else float(a))(x), dtype=object)


def _gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    bounded(*indices.shape, *np.delete(x.shape, axis))
    return np.take(x, indices.astype(np.int64), axis=axis)


def _slice(x: Array, *bounds: Array | None, **attributes: Sequence[int]) -> Array:
    names = ("starts", "ends", "axes", "steps")
    given = {name: bound for name, bound in zip(names, bounds, strict=False) if bound is not None} | attributes
    starts, ends = (np.asarray(given[name]).reshape(-1) for name in names[:2])
    steps = np.asarray(given.get("steps", [1] * len(starts))).reshape(-1)
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(_axes(given.get("axes", range(len(starts))), x.ndim)):
        start, stop, step = int(starts[i]), int(ends[i]), int(steps[i])
        # Counting down, an end before the first element has no other spelling in Python.
        index[axis] = slice(start, None if step < 0 and stop < -x.shape[axis] else stop, step)
    return x[tuple(index)]


def _concat(*arrays: Array, axis: int) -> Array:
    bounded(sum(a.size for a in arrays))
    kinds = {a.dtype == object for a in arrays}
    return np.concatenate([a.astype(object) for a in arrays] if len(kinds) > 1 else arrays, axis)


def _reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    sizes = [int(size) for size in shape.reshape(-1)]
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes)])


def _unsqueeze(x: Array, given: Array | None = None, *, axes: Sequence[int] | None = None) -> Array:
    wanted = np.asarray(axes if given is None else given).reshape(-1)
    return np.expand_dims(x, _axes(wanted, x.ndim + len(wanted)))


def _squeeze(x: Array, given: Array | None = None, *, axes: Sequence[int] | None = None) -> Array:
    wanted = axes if given is None else given
    return np.squeeze(x, None if wanted is None else _axes(wanted, x.ndim))


def _split(
    x: Array, sizes: Array | None = None, *, axis: int = 0, split: Any = None, num_outputs: int = 0
) -> list[Array]:
    parts = sizes if sizes is not None else split
    if parts is None and num_outputs:
        step = -(-x.shape[axis] // num_outputs)
        return np.split(x, range(step, x.shape[axis], step), axis)
    if parts is None:
        raise ModelError("Split of a constant needs the input or attribute split")
    return np.split(x, np.cumsum(np.asarray(parts))[:-1], axis)


def _mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    return np.asarray(np.fmod(a, b)) if fmod else modulo(a, b)


def _of_shape(shape: Array, *, value: Any = None) -> Array:
    bounded(*shape)
    filler = np.zeros(1, np.float32) if value is None else tensor_array(value)
    return np.full([int(size) for size in shape], filler.reshape(-1)[0], filler.dtype)


def _expand(x: Array, shape: Array) -> Array:
    sizes = np.broadcast_shapes(x.shape, tuple(int(size) for size in shape))
    bounded(*sizes)
    return np.broadcast_to(x, sizes)


def _tile(x: Array, repeats: Array) -> Array:
    bounded(x.size, *repeats)
    return np.tile(x, repeats.astype(np.int64))


def _range(start: Array, limit: Array, delta: Array) -> Array:
    first, last, step = (a.reshape(()).item() for a in (start, limit, delta))
    bounded(max(0, math.ceil((last - first) / step)) if step else 0)
    return np.arange(first, last, step, dtype=start.dtype)


def _where(condition: Array, a: Array, b: Array) -> Array:
    bounded(*np.broadcast_shapes(condition.shape, a.shape, b.shape))
    return np.where(condition.astype(bool), a, b)


def _reduce(function: Callable[..., Any]) -> Callable[..., Array]:
    def run(
        x: Array, given: Array | None = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        wanted = axes if given is None else given
        dims = () if wanted is None else _axes(wanted, x.ndim)
        if not dims and noop_with_empty_axes:
            return x
        return np.asarray(function(x, axis=dims or None, keepdims=bool(keepdims)), dtype=x.dtype)

    return run


FOLDS: dict[str, Callable[..., Any]] = {
    "Abs": elementwise(np.abs, lambda a: larger(a, -a)),
    "Add": elementwise(np.add, lambda a, b: a + b),
    "And": elementwise(np.logical_and, lambda a, b: bool(a and b)),
    "Cast": _cast,
    "Ceil": elementwise(np.ceil, lambda a: ceil(a)),
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _of_shape,
    "Div": elementwise(divided, lambda a, b: quotient(a, b)),
    "Dropout": lambda x, *_, **__: x,
    "Equal": elementwise(np.equal, lambda a, b: equal(a, b)),
    "Exp": elementwise(np.exp, lambda a: no_sizes(a)),
    "Expand": _expand,
    "Floor": elementwise(np.floor, lambda a: floor(a)),
    "Gather": _gather,
    "Greater": elementwise(np.greater, lambda a, b: compare(a, b) > 0),
    "Identity": lambda x: x,
    "Less": elementwise(np.less, lambda a, b: compare(a, b) < 0),
    "Max": elementwise(lambda *a: np.maximum.reduce(np.broadcast_arrays(*a)), lambda a, b: larger(a, b)),
    "Min": elementwise(lambda *a: np.minimum.reduce(np.broadcast_arrays(*a)), lambda a, b: smaller(a, b)),
    "Mod": _mod,
    "Mul": elementwise(np.multiply, lambda a, b: a * b),
    "Neg": elementwise(np.negative, lambda a: -a),
    "Not": elementwise(np.logical_not, lambda a: not a),
    "Or": elementwise(np.logical_or, lambda a, b: bool(a or b)),
    "Pow": elementwise(lambda a, b: np.power(a, b).astype(a.dtype), lambda a, b: power(a, b)),
    "Range": _range,
    "Reciprocal": elementwise(np.reciprocal, lambda a: no_sizes(a)),
    "ReduceL2": _reduce(lambda x, axis, keepdims: np.sqrt(np.square(x).sum(axis=axis, keepdims=keepdims))),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "Reshape": _reshape,
    "Shape": lambda x, *, start=0, end=None: np.array(x.shape[start:end], dtype=np.int64),
    "Size": lambda x: np.array(x.size, dtype=np.int64),
    "Slice": _slice,
    "Split": _split,
    "Sqrt": elementwise(np.sqrt, lambda a: no_sizes(a)),
    "Squeeze": _squeeze,
    "Sub": elementwise(np.subtract, lambda a, b: a - b),
    "Tile": _tile,
    "Transpose": lambda x, *, perm=None: np.transpose(x, perm),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
