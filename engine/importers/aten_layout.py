"""Converters of ATen calls that move elements: resize, pad, slice, split, concat, shuffle, reshape, expand."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

from torch import fx

from tilefuse.graph import Shape
from tilefuse.importers.aten_call import Call, Constant, Converter, Value, identity
from tilefuse.ops import (
    Concat,
    Coordinates,
    NearestRounding,
    Pad,
    PadMode,
    PixelShuffle,
    PixelUnshuffle,
    Reshape,
    Resize,
    ResizeMode,
    Slice,
)

BROADCASTING = ("add", "sub", "mul", "div", "rsub")


def scale_between(shapes: tuple[Shape, Shape], results: tuple[Shape, Shape]) -> tuple[Fraction, Fraction] | None:
    """Give the scale of height and width from operand to result, or None where it is not the same at both sizes."""
    first, second = (
        (Fraction(result[2], shape[2]), Fraction(result[3], shape[3]))
        for shape, result in zip(shapes, results, strict=True)
    )
    return first if first == second else None


def resize(mode: ResizeMode, coordinates: Coordinates, rounding: NearestRounding = "floor") -> Converter:
    """Make the converter of one of torch's interpolations."""

    def convert(call: Call) -> Value:
        aligned = bool(call.get("align_corners", False))
        factors = call.get("scale_factors")
        shapes, results = call.shapes(call.first), call.results
        scale, size = scale_between(shapes, results), None
        if scale == (Fraction(1), Fraction(1)):
            return identity(call)
        if factors is not None:
            # The result's size is rounded down, yet the factor itself maps the coordinates.
            scale = (_fraction(factors[0]), _fraction(factors[-1]))
        elif scale is None:
            if shapes[0][2:] == shapes[1][2:] == (1, 1) and results[0][2:] != results[1][2:]:
                return _expand(call)
            if results[0][2:] != results[1][2:]:
                raise call.varies("the result's size")
            size = (results[0][2], results[0][3])
        op = Resize(mode, scale, size, "align_corners" if aligned else coordinates, rounding)
        return call.emit(op, call.value(call.first))

    return convert


def _fraction(value: float) -> Fraction:
    """Give the simple fraction a float stands for, where there is one."""
    simple = Fraction(value).limit_denominator(1000)
    return simple if float(simple) == value else Fraction(value)


def _pad(call: Call) -> Value:
    modes: dict[str, PadMode] = {
        "constant": "constant",
        "reflect": "reflect",
        "replicate": "replicate",
        "circular": "circular",
        "reflection_pad2d.default": "reflect",
        "replication_pad2d.default": "replicate",
    }
    mode = modes[call.target if call.target in modes else call.get("mode", "constant")]
    amounts = list(call.get("padding" if call.has("padding") else "pad"))
    if not any(amounts):
        return identity(call)
    left, right, top, bottom = [*amounts, 0, 0][:4]
    if any(amounts[4:]) or len(call.results[0]) != 4:
        raise call.refused("pads something else than height and width")
    return call.emit(Pad((top, left, bottom, right), mode, float(call.get("value") or 0.0)), call.value(call.first))


def _axis(call: Call, rank: int) -> int:
    axis = int(call.get("dim", 0))
    return axis + rank if axis < 0 else axis


def _slice(call: Call) -> Value:
    return _cut(call, call.both("start"), call.both("end"), int(call.get("step")))


def _narrow(call: Call) -> Value:
    starts, lengths = call.both("start"), call.both("length")
    # The end of a range that starts at -n may be 0, which a slice would read as the beginning.
    stops = (starts[0] + lengths[0] or None, starts[1] + lengths[1] or None)
    return _cut(call, starts, stops, 1)


def _cut(call: Call, starts: tuple[Any, Any], stops: tuple[Any, Any], step: int) -> Value:
    """Convert x[start:stop:step] along one axis: a slice of channels, or a cropped margin of height or width."""
    shapes = call.shapes(call.first)
    rank = len(shapes[0])
    axis = _axis(call, rank)
    sizes = shapes[0][axis], shapes[1][axis]
    (start, stop, _), other = (slice(a, b).indices(n) for a, b, n in zip(starts, stops, sizes, strict=True))
    margin, other_margin = (start, sizes[0] - stop), (other[0], sizes[1] - other[1])
    if step == 1 and margin == other_margin == (0, 0):
        return identity(call)
    if axis == 0 or rank not in (2, 4):
        raise call.refused(f"cuts dimension {axis} of {rank}")
    source = call.value(call.first)
    if axis == 1:
        if (start, stop) != other[:2]:
            raise call.varies("the range of channels")
        return call.emit(Slice(1, start, stop, step), source)
    if margin != other_margin:
        raise call.varies("the range of pixels")
    if step != 1:
        return call.emit(Slice(axis, start, -margin[1] or None, step), source)
    top, left, bottom, right = (-start, 0, -margin[1], 0) if axis == 2 else (0, -start, 0, -margin[1])
    return call.emit(Pad((top, left, bottom, right)), source)


def _split(call: Call) -> Value:
    """Convert a split by channels: one slice for each part that is used."""
    shapes = call.shapes(call.first)
    if len(shapes[0]) not in (2, 4) or _axis(call, len(shapes[0])) != 1:
        raise call.refused("splits something else than channels")
    widths = [part.shape[1] for part in call.node.meta["val"]]
    if widths != [part.shape[1] for part in call.other.meta["val"]]:
        raise call.varies("the number of channels of a part")
    source, made = call.value(call.first), dict[int, str | Constant]()
    for user in call.node.users:
        index = user.args[1]
        if user.target is operator.getitem and isinstance(index, int) and index not in made and user.users:
            start = sum(widths[:index])
            made[index] = call.emit(Slice(1, start, start + widths[index]), source)
    return made


def _concat(call: Call) -> Value:
    tensors, rank = call.raw("tensors"), len(call.results[0])
    if rank not in (2, 4) or _axis(call, rank) != 1:
        raise call.refused("joins tensors along something else than channels")
    if any(isinstance(call.values[tensor], Constant) for tensor in tensors):
        raise call.refused("joins a constant to the features")
    if len(tensors) == 1:
        return call.values[tensors[0]]
    return call.emit(Concat(1), *(call.named(tensor) for tensor in tensors))


def _repeat(call: Call) -> Value:
    counts = list(call.get("repeats"))
    if len(counts) != 4 or (counts[0], *counts[2:]) != (1, 1, 1):
        raise call.refused("repeats something else than channels")
    return call.emit(Concat(1), *[call.value("self")] * counts[1])


def _pixel_shuffle(call: Call) -> Value:
    if len(call.results[0]) != 4:
        raise call.refused("shuffles something else than [N, C, H, W]")
    return call.emit(PixelShuffle(call.get("upscale_factor")), call.value("self"))


def _pixel_unshuffle(call: Call) -> Value:
    if len(call.results[0]) != 4:
        raise call.refused("shuffles something else than [N, C, H, W]")
    return call.emit(PixelUnshuffle(call.get("downscale_factor")), call.value("self"))


def _reshape(call: Call) -> Value:
    """Convert any change of shape: each size is a constant or kept in its place, and one may be inferred."""
    shapes, results = call.shapes(call.first), call.results
    if shapes == results:
        return identity(call)
    if (shapes[0][:1], shapes[1][:1]) != (results[0][:1], results[1][:1]):
        raise call.refused("mixes the images of a batch")
    wanted = []
    for before, now in zip(zip(*shapes, strict=True), zip(*results, strict=True), strict=False):
        wanted.append(now[0] if now[0] == now[1] else 0 if now == before else -1)
    wanted += [a if a == b else -1 for a, b in list(zip(*results, strict=True))[len(wanted) :]]
    if wanted.count(-1) > 1:
        raise call.varies("more than one size of the new shape")
    return call.emit(Reshape((0, *wanted[1:])), call.value(call.first))


def _expand(call: Call) -> Value:
    """Skip an expansion where every reader would broadcast the operand anyway."""
    shapes, results = call.shapes(call.first), call.results
    if shapes == results:
        return identity(call)
    if len(shapes[0]) != len(results[0]):
        raise call.refused("adds a dimension")
    for user in call.node.users:
        name = getattr(user.target, "_opname", "").rstrip("_")
        others = [a for a in user.args if isinstance(a, fx.Node) and a is not call.node]
        if name not in BROADCASTING or not any(a.meta["val"].shape == user.meta["val"].shape for a in others):
            raise call.refused("makes a larger tensor that is read otherwise than by arithmetic that broadcasts")
    return identity(call)


def _same_type(call: Call) -> Value:
    if call.raw(call.first).meta["val"].dtype != call.node.meta["val"].dtype:
        raise call.refused("changes the number type inside the network")
    return identity(call)


def _inactive(call: Call) -> Value:
    if call.get("train"):
        raise call.refused("drops elements at random at inference")
    return identity(call)


LAYOUT: dict[str, Converter] = {
    "alias.default": identity,
    "clone.default": identity,
    "contiguous.default": identity,
    "detach.default": identity,
    "dropout.default": _inactive,
    "feature_dropout.default": _inactive,
    "alpha_dropout.default": _inactive,
    "to.dtype": _same_type,
    "to.device": _same_type,
    "to.dtype_layout": _same_type,
    "to.other": _same_type,
    "_to_copy.default": _same_type,
    "type_as.default": _same_type,
    "upsample_nearest2d.vec": resize("nearest", "asymmetric"),
    "upsample_nearest2d.default": resize("nearest", "asymmetric"),
    "_upsample_nearest_exact2d.vec": resize("nearest", "half_pixel", "round_prefer_ceil"),
    "_upsample_nearest_exact2d.default": resize("nearest", "half_pixel", "round_prefer_ceil"),
    "upsample_bilinear2d.vec": resize("linear", "half_pixel"),
    "upsample_bilinear2d.default": resize("linear", "half_pixel"),
    "upsample_bicubic2d.vec": resize("cubic", "half_pixel"),
    "upsample_bicubic2d.default": resize("cubic", "half_pixel"),
    "pad.default": _pad,
    "constant_pad_nd.default": _pad,
    "reflection_pad2d.default": _pad,
    "replication_pad2d.default": _pad,
    "slice.Tensor": _slice,
    "narrow.default": _narrow,
    "split.Tensor": _split,
    "split.sizes": _split,
    "split_with_sizes.default": _split,
    "chunk.default": _split,
    "tensor_split.sections": _split,
    "cat.default": _concat,
    "concat.default": _concat,
    "repeat.default": _repeat,
    "pixel_shuffle.default": _pixel_shuffle,
    "pixel_unshuffle.default": _pixel_unshuffle,
    "view.default": _reshape,
    "reshape.default": _reshape,
    "_unsafe_view.default": _reshape,
    "flatten.using_ints": _reshape,
    "unflatten.int": _reshape,
    "squeeze.dim": _reshape,
    "squeeze.dims": _reshape,
    "unsqueeze.default": _reshape,
    "expand.default": _expand,
    "expand_as.default": _expand,
}
