"""Arithmetic on constants: arrays of numbers, or of sizes that depend on the image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilefuse.errors import ModelError
from tilefuse.importers.onnx_sizes import Number, Size, compare, divide, floor, least

Array = NDArray[Any]
MAX_ELEMENTS = 2**27


def bounded(*shape: Any) -> None:
    """Refuse a result no well-meant model has."""
    if math.prod(int(size) for size in shape) > MAX_ELEMENTS:
        raise ModelError(f"a constant of shape {[int(size) for size in shape]} is too large")


def each(function: Callable[..., Any]) -> Callable[..., Array]:
    """Make a broadcasting function for arrays of sizes out of one for numbers."""
    run: Callable[..., Array] = np.frompyfunc(function, function.__code__.co_argcount, 1)
    return run


def elementwise(on_numbers: Callable[..., Any], on_sizes: Callable[..., Any]) -> Callable[..., Array]:
    """Make a broadcasting op of its two forms, on plain arrays and on single sizes."""
    symbolic = each(on_sizes)

    def run(*arrays: Array) -> Array:
        bounded(*np.broadcast_shapes(*(a.shape for a in arrays)))
        if any(a.dtype == object for a in arrays):
            return np.asarray(symbolic(*(a.astype(object) for a in arrays)), dtype=object)
        with np.errstate(all="ignore"):
            return np.asarray(on_numbers(*arrays))

    return run


def no_sizes(*_: Number) -> Number:
    """Refuse a function that sizes have no exact form for."""
    raise ModelError("the model computes a size in an unsupported way")


def quotient(a: Number, b: Number) -> Number:
    """Divide sizes; integers stay integers, as ONNX truncates and sizes are not negative."""
    exact = divide(a, b)
    if isinstance(a, float) or isinstance(b, float) or _whole(exact):
        return exact
    if isinstance(a, Size) and isinstance(b, Size):
        raise ModelError(f"the model divides ({a}) by ({b}), and whether it truncates is lost")
    return truncate(exact)


def _whole(a: Number) -> bool:
    return all(k.denominator == 1 for _, k in a.terms) if isinstance(a, Size) else a == int(a)


def truncate(a: Number) -> Number:
    """Round towards zero."""
    bound = least(a)
    if bound is not None and bound >= 0:
        return floor(a)
    whole = floor(a)
    if whole != a:
        raise ModelError(f"the model truncates ({a}), whose sign depends on the size of the image")
    return whole


def larger(a: Number, b: Number) -> Number:
    """Give the larger of two, where it is the same one for every image."""
    difference, reverse = least(a - b), least(b - a)
    if difference is not None and difference >= 0:
        return a
    if reverse is not None and reverse >= 0:
        return b
    raise ModelError(f"the model takes the larger of ({a}) and ({b}), which depends on the size of the image")


def smaller(a: Number, b: Number) -> Number:
    """Give the smaller of two, where it is the same one for every image."""
    return a + b - larger(a, b)


def equal(a: Number, b: Number) -> bool:
    """Compare, where the answer is the same for every image."""
    return a == b or compare(a, b) == 0


def divided(a: Array, b: Array) -> Array:
    """Divide as ONNX does: integers truncate."""
    if a.dtype.kind not in "iu":
        return np.asarray(a / b)
    if (b == 0).any():
        raise ModelError("the model's constants divide by zero")
    return np.asarray(a // b if a.dtype.kind == "u" else np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))


def power(a: Number, b: Number) -> Number:
    """Raise to a small whole power."""
    if not isinstance(b, int) or not 0 <= b <= 4:
        raise ModelError(f"the model raises ({a}) to the power {b}")
    product: Number = 1
    for _ in range(b):
        product = product * a
    return product


modulo = elementwise(np.mod, lambda a, b: a - floor(divide(a, b)) * b)
