"""Resizing by tables: the definition's own tables give the definition's result, wherever a tile is cut."""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor

from tests.kernel_cases import check_launcher, check_refusals, image
from tilefuse.backends.triton.tables import resize_tables
from tilefuse.errors import BackendError
from tilefuse.kernels.resize import resize, resize_ref
from tilefuse.ops import Coordinates, Resize


def definition(op: Resize, x: Tensor) -> Tensor:
    return op.apply(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", get_args(Coordinates))
def test_every_convention_is_the_definition(mode: str, coordinates: str) -> None:
    x = image(2, 5, 7, 3)
    for scale in (Fraction(3), Fraction(1, 2), Fraction(3, 2)):
        op = Resize(mode, (scale, scale), coordinates=coordinates)  # type: ignore[arg-type]
        tables = resize_tables(op, 5, 7)
        made = resize(x, *tables)
        # torch computes the positions of align_corners in single precision.
        assert (made - definition(op, x)).abs().max() < 5e-6
    op = Resize(mode, size=(4, 9), coordinates=coordinates)  # type: ignore[arg-type]
    assert (resize(x, *resize_tables(op, 5, 7)) - definition(op, x)).abs().max() < 2e-6


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_every_layout_goes_in_and_out(mode: str) -> None:
    op = Resize(mode, (Fraction(2), Fraction(2)))  # type: ignore[arg-type]
    for shape in ((1, 1, 1, 1), (2, 3, 17, 4)):
        tables = resize_tables(op, *shape[1:3])
        launch, reference = (
            partial(f, rows=tables[0], row_weights=tables[1], columns=tables[2], column_weights=tables[3])
            for f in (resize, resize_ref)
        )
        check_launcher(launch, reference, image(*shape), max_abs=1e-6)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_a_tile_is_the_same_bits_as_the_whole(mode: str) -> None:
    op = Resize(mode, (Fraction(4), Fraction(4)))  # type: ignore[arg-type]
    x = image(1, 40, 37, 3)
    whole = resize(x, *resize_tables(op, 40, 37))
    tile = resize(x[:, 13:33, 8:31], *resize_tables(op, 20, 23))
    assert torch.equal(tile[:, 12:-12, 12:-12], whole[:, 13 * 4 + 12 : 33 * 4 - 12, 8 * 4 + 12 : 31 * 4 - 12])


def test_what_half_precision_can_not_hold_becomes_no_number() -> None:
    """A cubic kernel goes beyond the values that it runs through."""
    op, x = Resize("cubic", (Fraction(2), Fraction(2))), torch.zeros(1, 1, 8, 1)
    x[:, :, 3:5] = 65504.0
    made = resize(x.half(), *resize_tables(op, 1, 8))
    assert 0 < made.isnan().sum() < 8
    assert not made.isinf().any()
    assert torch.equal(resize_ref(x.half(), *resize_tables(op, 1, 8)).isnan(), made.isnan())


def test_bad_input_is_named() -> None:
    rows, row_weights, columns, column_weights = resize_tables(Resize("linear", (Fraction(2), Fraction(2))), 2, 3)
    launch = partial(resize, rows=rows, row_weights=row_weights, columns=columns, column_weights=column_weights)
    check_refusals("resize", launch, image(1, 2, 3, 4))
    with pytest.raises(BackendError, match="x is 0x3; at least one pixel is accepted"):
        launch(image(1, 2, 3, 4)[:, :0])
    with pytest.raises(BackendError, match="row_weights is float64; float32 are accepted"):
        resize(image(1, 2, 3, 4), rows, row_weights.double(), columns, column_weights)
    with pytest.raises(BackendError, match="as many taps and sizes as weights"):
        resize(image(1, 2, 3, 4), rows[:1].contiguous(), row_weights, columns, column_weights)
