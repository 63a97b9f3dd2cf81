"""Chains of pointwise arithmetic: every op, broadcasting, and what a NaN becomes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernel_cases import SHAPES, awkward, check_refusals, image
from tilefuse.errors import BackendError
from tilefuse.kernels.elementwise import OPS, Step, elementwise, elementwise_ref

POSITIVE = ("log", "sqrt", "rsqrt", "reciprocal", "div")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")


@pytest.mark.parametrize("op", OPS)
def test_every_op(op: str) -> None:
    x, y = image(1, 3, 5, 4) * 3, image(1, 1, 1, 4, seed=1)
    if op in POSITIVE:
        x, y = x.abs() + 0.1, y.abs() + 0.1
    steps = [Step(op, 0, 1, 0.3)]
    expected = elementwise_ref((x, y), steps)
    error = (elementwise((x, y), steps) - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert error < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_chains_read_values_again(shape: tuple[int, ...]) -> None:
    """SPAN's gate, (a + b) * (sigmoid(a) - 1/2), and a factor a channel."""
    steps = (
        *(Step("add", 0, 1), Step("sigmoid", 0), Step("constant", number=0.5), Step("sub", 4, 5)),
        *(Step("mul", 3, 6), Step("mul", 7, 2)),
    )
    n, _, _, c = shape
    a, b, factor = image(*shape), image(*shape, seed=1), image(n, 1, 1, c, seed=2)
    expected = elementwise_ref((a, b, factor), steps)
    for given in (a, *awkward(a)):
        assert (elementwise((given, b, factor), steps) - expected).abs().max() < 1e-6


def test_what_half_precision_can_not_hold_becomes_no_number() -> None:
    x, steps = torch.tensor([65504.0, 32768.0, -40000.0, 1.0]).half().view(1, 1, 1, 4), (Step("add", 0, 0),)
    made = elementwise((x,), steps)
    assert made.isnan().flatten().tolist() == [True, True, True, False]
    assert torch.equal(made.isnan(), elementwise_ref((x,), steps).isnan())


def test_without_steps_it_copies_between_layouts_and_types() -> None:
    x = image(2, 3, 5, 4)
    for given in awkward(x):
        buffer = torch.full((2, 3, 5, 9), torch.nan, dtype=torch.float16)
        elementwise((given,), (), out=buffer[..., 1:5])
        assert torch.equal(buffer[..., 1:5], x.half())
        assert buffer[..., 0].isnan().all()
        assert buffer[..., 5:].isnan().all()


@pytest.mark.parametrize(
    "op", ["relu", "leaky_relu", "clamp_low", "clamp_high", "hardswish", "hardsigmoid", "max", "min"]
)
def test_a_nan_stays_one(op: str) -> None:
    """A value that overflowed must not come out as a number: the engine looks for it and runs the window again."""
    x = torch.full((1, 1, 1, 2), torch.nan)
    assert elementwise((x, torch.zeros(1, 1, 1, 2)), [Step(op, 0, 1, 0.2)]).isnan().all()


def test_bad_input_is_named() -> None:
    def double(x: Tensor, out: Tensor | None = None) -> Tensor:
        return elementwise((x,), [Step("add")], out=out)

    check_refusals("elementwise", double, image(1, 2, 2, 4))
    x = image(1, 2, 2, 4)
    with pytest.raises(BackendError, match=r"step 0 is .*'cbrt'"):
        elementwise((x,), [Step("cbrt")])
    with pytest.raises(BackendError, match=r"step 1 is .* on earlier values"):
        elementwise((x,), [Step("relu"), Step("add", 0, 2)])
    with pytest.raises(BackendError, match=r"step 1 is .* on earlier values"):
        elementwise((x,), [Step("relu"), Step("add", 0, -1)])
    with pytest.raises(BackendError, match="sizes that broadcast"):
        elementwise((x, image(1, 3, 2, 4)), [Step("add", 0, 1)])
    with pytest.raises(BackendError, match="7 inputs; 1 to 6 are accepted"):
        elementwise([x] * 7, ())
