"""Resize against torch's interpolation, against ONNX's reference implementation, and against its own definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from math import ceil, floor
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tilefuse.ops import Coordinates, NearestRounding, Resize, ResizeMode

Compare = Callable[..., None]
SIZES = [(1, 1), (1, 17), (2, 3), (3, 2), (17, 63)]
SCALES = [Fraction(2), Fraction(3), Fraction(1, 2), Fraction(3, 2), Fraction(5, 3), Fraction(7, 10)]
TORCH_MODES = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def conventions() -> list[tuple[ResizeMode, Coordinates, bool | None]]:
    """torch's interpolation modes in ONNX's terms, with torch's align_corners."""
    plain: list[tuple[ResizeMode, Coordinates, bool | None]] = [("nearest", "asymmetric", None)]
    for mode in ("linear", "cubic"):
        plain += [(mode, "half_pixel", False), (mode, "align_corners", True)]
    return plain


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "coordinates", "aligned"), conventions())
def test_torch_conventions(
    mode: ResizeMode, coordinates: Coordinates, aligned: bool | None, size: tuple[int, int], assert_close: Compare
) -> None:
    x = image(2, 3, *size)
    for scale in SCALES:
        if min(size) * scale < 1:
            continue
        expected = F.interpolate(x, scale_factor=float(scale), mode=TORCH_MODES[mode], align_corners=aligned)
        op = Resize(mode, (scale, scale), None, coordinates)
        # torch works its positions out in single precision.
        assert_close(op.apply(x), expected, max_abs=5e-5, what=f"{op} at {size}")
        assert op.output_size(*size) == tuple(expected.shape[2:])
    for target in ((1, 1), (2, 5), (34, 20)):
        expected = F.interpolate(x, target, mode=TORCH_MODES[mode], align_corners=aligned)
        assert_close(Resize(mode, None, target, coordinates).apply(x), expected, max_abs=5e-5, what=f"to {target}")


def test_a_scale_that_makes_no_new_row_still_interpolates(assert_close: Compare) -> None:
    x = image(1, 2, 5, 6)
    for mode, coordinates in (("nearest", "asymmetric"), ("linear", "half_pixel"), ("cubic", "half_pixel")):
        op = Resize(mode, (Fraction(9, 8), Fraction(2)), None, coordinates)
        columns = Resize(mode, (Fraction(1), Fraction(2)), None, coordinates).apply(x)
        index, weight = op.samples(5, 5, Fraction(9, 8))
        rows = sum(columns[:, :, i] * w.float().view(1, 1, -1, 1) for i, w in zip(index, weight, strict=True))
        assert_close(op.apply(x), rows)
        assert not torch.equal(op.apply(x), columns)


@pytest.mark.parametrize(("mode", "coordinates", "aligned"), conventions())
def test_the_written_out_path_is_torch_too(
    mode: ResizeMode, coordinates: Coordinates, aligned: bool | None, assert_close: Compare, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Resize, "_native", lambda self: None)
    test_torch_conventions(mode, coordinates, aligned, (17, 63), assert_close)


def test_an_inexact_scale_makes_torch_s_size() -> None:
    scale = Fraction(29, 100)
    x = torch.empty(1, 1, 100, 100, device="meta")
    assert Resize("linear", (scale, scale)).apply(x).shape == F.interpolate(x, scale_factor=0.29, mode="bilinear").shape
    assert Resize("linear", (scale, scale)).output_size(100, 100) == (28, 28)


def reference(x: Tensor, op: Resize) -> Tensor:
    """ONNX's own reference implementation (numpy), one dimension of scale or size at a time."""
    module = pytest.importorskip("onnx.reference.ops.op_resize")
    coefficients = {
        "nearest": lambda ratio, scale: module._nearest_coeffs(ratio, mode=op.rounding),
        "linear": module._linear_coeffs,
        "cubic": lambda ratio, scale: module._cubic_coeffs(ratio, scale, A=op.cubic_a),
    }[op.mode]
    scales = None if op.scale is None else np.array([1, 1, *map(float, op.scale)])
    sizes = None if op.size is None else np.array([*x.shape[:2], *op.size])
    result = module._interpolate_nd(
        x.double().numpy(),
        coefficients,
        output_size=sizes,
        scale_factors=scales,
        coordinate_transformation_mode=op.coordinates,
        exclude_outside=op.exclude_outside,
    )
    return torch.from_numpy(result).float()


@pytest.mark.parametrize("coordinates", get_args(Coordinates))
@pytest.mark.parametrize("mode", get_args(ResizeMode))
def test_onnx_reference(mode: ResizeMode, coordinates: Coordinates, assert_close: Compare) -> None:
    x = image(1, 2, 6, 5)
    # With align_corners ONNX maps to the fractional size, torch to the one rounded down; here they are the same.
    scales = [(Fraction(2), Fraction(3)), (Fraction(1, 2), Fraction(1)), (Fraction(3, 2), Fraction(2))]
    if coordinates != "align_corners":
        scales.append((Fraction(3, 4), Fraction(9, 8)))
    roundings = get_args(NearestRounding) if mode == "nearest" else ("floor",)
    for rounding, scale in itertools.product(roundings, scales):
        op = Resize(mode, scale, None, coordinates, rounding)
        assert_close(op.apply(x), reference(x, op), what=str(op))
    for rounding, target in itertools.product(roundings, ((3, 10), (12, 4), (1, 1))):
        if (mode, coordinates, target) == ("cubic", "pytorch_half_pixel", (1, 1)):
            continue  # the operator's text and ONNX Runtime say position 0, as here; the reference takes -0.5
        op = Resize(mode, None, target, coordinates, rounding)
        assert_close(op.apply(x), reference(x, op), what=str(op))
    if mode == "cubic":
        op = Resize(mode, scales[0], None, coordinates, cubic_a=-0.5, exclude_outside=True)
        assert_close(op.apply(x), reference(x, op), what=str(op))


@pytest.mark.parametrize("rounding", get_args(NearestRounding))
@pytest.mark.parametrize("coordinates", ["asymmetric", "half_pixel"])
def test_nearest_never_errs_on_the_border_of_two_pixels(coordinates: Coordinates, rounding: NearestRounding) -> None:
    rounded = {
        "floor": floor,
        "ceil": ceil,
        "round_prefer_floor": lambda p: ceil(p - Fraction(1, 2)),
        "round_prefer_ceil": lambda p: floor(p + Fraction(1, 2)),
    }[rounding]
    for scale in (Fraction(3, 5), Fraction(5, 3), Fraction(9, 7), Fraction(1, 3), Fraction(11)):
        op = Resize("nearest", (scale, scale), None, coordinates, rounding)
        out, _ = op.output_size(400, 1)
        shift = Fraction(0) if coordinates == "asymmetric" else Fraction(1, 2)
        wanted = [min(max(rounded((i + shift) / scale - shift), 0), 399) for i in range(out)]
        assert op.samples(400, out, scale)[0][0].tolist() == wanted


def test_a_float_scale_s_denominator_does_not_overflow(assert_close: Compare) -> None:
    scale = Fraction(0.1) * 13
    x = image(1, 1, 40, 40)
    near = Resize("linear", (scale, scale), None, "pytorch_half_pixel").apply(x)
    assert_close(near, F.interpolate(x, scale_factor=1.3, mode="bilinear"), max_abs=1e-4)


def test_rounding_matters_only_where_a_sample_falls_on_a_border() -> None:
    def survives(scale: Fraction, coordinates: Coordinates, rounding: NearestRounding) -> bool:
        return Resize("nearest", (scale, scale), None, coordinates, rounding).survives_rounding(scale)

    assert survives(Fraction(3), "half_pixel", "floor")
    assert survives(Fraction(1, 2), "asymmetric", "floor")
    assert survives(Fraction(3, 5), "half_pixel", "round_prefer_floor")
    assert not survives(Fraction(3, 5), "half_pixel", "floor")
    assert not survives(Fraction(5, 3), "asymmetric", "floor")
    assert not survives(Fraction(3, 2), "half_pixel_symmetric", "floor")
    assert survives(Fraction(5, 3), "align_corners", "floor")


def test_shapes_come_without_data() -> None:
    x = torch.empty(1, 2, 17, 13, device="meta")
    for mode, coordinates in itertools.product(get_args(ResizeMode), get_args(Coordinates)):
        assert Resize(mode, (Fraction(3, 2), Fraction(1, 2)), None, coordinates).apply(x).shape == (1, 2, 25, 6)
        assert Resize(mode, None, (7, 5), coordinates).apply(x).shape == (1, 2, 7, 5)
