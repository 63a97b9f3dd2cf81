"""Sizes that depend on the image: their arithmetic, and the shapes inferred with them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_emitters_onnx import ALL, IMAGE, _graph
from tilefuse.errors import ModelError
from tilefuse.importers.onnx_shapes import infer
from tilefuse.importers.onnx_sizes import Number, Size, ceil, compare, divide, floor, symbol
from tilefuse.ops import Resize

H, W = symbol("H"), symbol("W")
STEPS = st.lists(st.tuples(st.sampled_from("+-*/%c"), st.sampled_from([1, 2, 3, 5, "H", "W"])), max_size=6)


@given(STEPS, st.integers(1, 40), st.integers(1, 40))
def test_sizes_compute_as_numbers_do(steps: list[tuple[str, Any]], height: int, width: int) -> None:
    known = {"H": height, "W": width}
    symbolic: Number = H
    plain = height
    for sign, operand in steps:
        other = {"H": H, "W": W}.get(operand, operand)
        number = known.get(operand, operand)
        if sign in "/%c" and isinstance(other, Size):
            continue
        match sign:
            case "+":
                symbolic, plain = symbolic + other, plain + number
            case "-":
                symbolic, plain = symbolic - other, plain - number
            case "*":
                symbolic, plain = symbolic * other, plain * number
            case "/":
                symbolic, plain = floor(divide(symbolic, other)), plain // number
            case "%":
                symbolic, plain = symbolic - floor(divide(symbolic, other)) * other, plain % number
            case "c":
                symbolic, plain = ceil(divide(symbolic, other)), -(-plain // number)
    assert value(symbolic, known) == plain


def value(size: Number, known: dict[str, int]) -> Any:
    """Put numbers in the place of the unknowns."""
    if not isinstance(size, Size):
        return size
    total = 0
    for atoms, factor in size.terms:
        product: Any = factor
        for atom in atoms:
            product *= known[atom] if isinstance(atom, str) else value(atom.inner, known).__floor__()
        total += product
    return total


def test_sizes_are_equal_when_they_are_for_every_image() -> None:
    assert (H + 1) * (H - 1) == H * H - 1
    assert (2 * H) // 2 == H
    assert (2 * H + 3) // 2 == H + 1
    assert divide(H * W * 6, H * 2) == 3 * W
    assert divide(3 * H + 3, H + 1) == 3
    assert H - H == 0
    assert compare(H + 1, H) == 1
    assert compare(0, H) == -1
    for unknown in (lambda: compare(H, W), lambda: compare(H, 1), lambda: divide(H, W), lambda: divide(1, H)):
        with pytest.raises(ModelError, match="depends on the size"):
            unknown()


def test_shape_arithmetic_is_bounded() -> None:
    size: Number = H + W
    for _ in range(5):
        size = size * size
    with pytest.raises(ModelError, match="too involved"):
        size * size * size
    nested: Number = H
    for _ in range(32):
        nested = floor(divide(nested + 1, 3)) + H
    with pytest.raises(ModelError, match="too deeply"):
        floor(divide(nested + 1, 3))


def test_shapes_are_those_of_the_graph() -> None:
    for op, extras in ALL:
        graph = _graph(op, IMAGE, extras, dynamic=True)
        known = dict(zip("NHW", (IMAGE[0], *IMAGE[2:]), strict=True))
        shape = tuple(
            symbol(n) if size is None else size for n, size in zip("NCHW", graph.inputs[0].shape, strict=True)
        )
        found = infer(op, [shape, *extras])
        wanted = graph.shapes(IMAGE)["y"]
        assert len(found) == len(wanted), op
        for size, number in zip(found, wanted, strict=True):
            if isinstance(size, Size) and "?" in str(size):
                assert not isinstance(op, Resize)
                continue
            assert value(size, known) == number, op
