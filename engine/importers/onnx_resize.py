"""ONNX Resize and its forerunner Upsample."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import cast, get_args

import numpy as np

from tilefuse.errors import ModelError
from tilefuse.importers.onnx_builder import Value
from tilefuse.importers.onnx_call import Call
from tilefuse.importers.onnx_shapes import Dims
from tilefuse.importers.onnx_sizes import Size, divide, unknown
from tilefuse.ops import Coordinates, NearestRounding, Pair, Resize, ResizeMode


def upsample(call: Call, *, mode: str = "nearest", scales: Sequence[float] | None = None) -> Value:
    factors = [Fraction(s) for s in scales] if scales is not None else _scales(call, 1)
    return _resize_old(call, mode, factors)


def _resize_old(call: Call, mode: str, scales: Sequence[Fraction]) -> Value:
    """Resize as before opset 11: asymmetric coordinates, and nearest's rounding defined for enlarging only."""
    if len(scales) != 4:
        raise call.refuse(f"{len(scales)} scales; an image of rank 4 has four")
    if mode == "nearest" and min(scales) < 1:
        raise call.refuse("attribute mode = nearest with scales below 1 is undefined before opset 11")
    if mode not in ("nearest", "linear"):
        raise call.refuse(f"attribute mode = {mode} is not supported")
    x = call.image(0)
    _unscaled(call, scales[:2], "scales")
    op = Resize(cast(ResizeMode, mode), (scales[2], scales[3]), None, "asymmetric", "floor")
    _settled(call, op, x.shape[2:])
    return call.add(op, x)


def resize(
    call: Call,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Value:
    del extrapolation_value  # concerns tf_crop_and_resize, refused below
    if call.opset < 11:
        return _resize_old(call, mode, _scales(call, 1))
    for name, given, supported in (
        ("antialias", antialias, (0,)),
        ("keep_aspect_ratio_policy", keep_aspect_ratio_policy, ("stretch",)),
        ("mode", mode, get_args(ResizeMode)),
        ("nearest_mode", nearest_mode, get_args(NearestRounding)),
        ("coordinate_transformation_mode", coordinate_transformation_mode, get_args(Coordinates)),
    ):
        if given not in supported:
            raise call.refuse(f"attribute {name} = {given} is not supported")
    x = call.image(0)
    along = [axis % 4 for axis in axes] if axes is not None else [0, 1, 2, 3]
    scale, size = _target(call, x.shape, along)
    if coordinate_transformation_mode == "align_corners" and scale is not None:
        _aligned(call, x.shape[2:], scale)
    op = Resize(
        cast(ResizeMode, mode),
        scale,
        size,
        cast(Coordinates, coordinate_transformation_mode),
        cast(NearestRounding, nearest_mode),
        cubic_coeff_a,
        bool(exclude_outside),
    )
    _settled(call, op, x.shape[2:])
    return call.add(op, x)


def _settled(call: Call, op: Resize, sizes: Dims) -> None:
    """Refuse nearest where the choice of a pixel hangs on how a runtime rounds."""
    if op.mode != "nearest" or op.coordinates == "align_corners":
        return
    known = [Fraction(out, size) for out, size in zip(op.size or (), sizes, strict=False) if isinstance(size, int)]
    scales = op.scale or known
    if len(scales) < 2 or not all(map(op.survives_rounding, scales)):
        raise call.refuse(
            f"attribute coordinate_transformation_mode = {op.coordinates} with nearest_mode = {op.rounding}: at these "
            f"scales ({', '.join(map(str, scales)) or 'unknown'}) it depends on the runtime's rounding"
        )


def _aligned(call: Call, sizes: Dims, scale: Sequence[Fraction]) -> None:
    """Refuse what ONNX aligns to a fractional size and ONNX Runtime and torch to the size rounded down."""
    for size, factor in zip(sizes, scale, strict=True):
        whole = factor.denominator == 1 or (isinstance(size, int) and (size * factor).denominator == 1)
        if not whole:
            raise call.refuse(
                f"attribute coordinate_transformation_mode = align_corners with scales = {float(factor):g}, "
                "which do not always make a whole size"
            )


def _target(call: Call, x: Dims, along: Sequence[int]) -> tuple[tuple[Fraction, Fraction] | None, Pair | None]:
    """Read scales or sizes; a size that is a multiple of the image's becomes a scale."""
    if call.has(2) and call.constant(2, "scales").size:
        scales = dict(zip(along, _scales(call, 2), strict=True))
        _unscaled(call, [scales.get(i, Fraction(1)) for i in (0, 1)], "scales")
        return (scales.get(2, Fraction(1)), scales.get(3, Fraction(1))), None
    sizes = dict(zip(along, call.dims(3, "sizes"), strict=True))
    wanted = [sizes.get(i, x[i]) for i in range(4)]
    ratios: list[Fraction | None] = []
    for given, made in zip(x, wanted, strict=True):
        try:
            ratio = divide(made, given)
        except ModelError:
            ratio = unknown()
        ratios.append(None if isinstance(ratio, Size) else Fraction(ratio))
    _unscaled(call, ratios[:2], "sizes")
    height, width = wanted[2], wanted[3]
    if isinstance(height, int) and isinstance(width, int):
        if min(height, width) < 1:
            raise call.refuse(f"sizes = {[height, width]} make an empty image")
        return None, (height, width)
    if ratios[2] is None or ratios[3] is None:
        raise call.refuse(f"sizes = [{height}, {width}] is no multiple of the input's [{x[2]}, {x[3]}] for every image")
    return (ratios[2], ratios[3]), None


def _scales(call: Call, index: int) -> list[Fraction]:
    """Read scales; a float that is a simple fraction rounded is that fraction."""
    array = call.constant(index, "scales").reshape(-1)
    fractions = []
    for value in array.tolist():
        if isinstance(value, Size) or not 0 < value < 2**16:
            raise call.refuse(f"scales = {value} is not supported")
        simple = Fraction(value).limit_denominator(4096)
        fractions.append(simple if np.float32(float(simple)) == np.float32(float(value)) else Fraction(value))
    return fractions


def _unscaled(call: Call, ratios: Sequence[Fraction | None], what: str) -> None:
    if any(ratio != 1 for ratio in ratios):
        raise call.refuse(f"{what}: only height and width can be resized")
