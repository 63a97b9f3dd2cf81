"""Converters of ATen calls that gather over a region: pooling, means, variances and normalisation."""

from __future__ import annotations

from typing import Literal

import torch

from tilefuse.importers.aten_call import Call, Converter, Value, pair
from tilefuse.importers.aten_layout import scale_between
from tilefuse.ops import AdaptivePool2d, BatchNorm, Binary, GroupNorm, Mean, Pool2d, Unary


def _pool(kind: Literal["max", "avg"]) -> Converter:
    def convert(call: Call) -> Value:
        if len(call.shapes("self")[0]) != 4:
            raise call.refused("pools something else than [N, C, H, W]")
        if call.get("divisor_override") is not None:
            raise call.refused("has a divisor_override")
        kernel = pair(call.get("kernel_size"))
        op = Pool2d(
            kind,
            kernel,
            pair(call.get("stride") or kernel),
            pair(call.get("padding")) * 2,
            pair(call.get("dilation", 1)),
            call.get("ceil_mode"),
            call.get("count_include_pad", True),
        )
        made = call.emit(op, call.value("self"))
        return {0: made} if call.target.startswith("max_pool2d_with_indices") else made

    return convert


def _adaptive_pool(kind: Literal["max", "avg"]) -> Converter:
    def convert(call: Call) -> Value:
        source, shapes = call.value("self"), call.shapes("self")
        parts = [node.meta["val"][0] if kind == "max" else node.meta["val"] for node in (call.node, call.other)]
        results = tuple(parts[0].shape), tuple(parts[1].shape)
        scale = scale_between(shapes, results)
        if results[0][2:] == results[1][2:]:
            made = call.emit(AdaptivePool2d(kind, (results[0][2], results[0][3])), source)
        elif scale is not None and scale[0].numerator == scale[1].numerator == 1:
            kernel = scale[0].denominator, scale[1].denominator
            made = call.emit(Pool2d(kind, kernel, kernel), source)
        else:
            raise call.varies("the result's size")
        return {0: made} if kind == "max" else made

    return convert


def _dims(call: Call) -> tuple[int, ...]:
    """Read the dimensions to reduce over; never the batch."""
    given, rank = call.get("dim"), len(call.shapes("self")[0])
    numbers = range(rank) if not given and given != 0 else [given] if isinstance(given, int) else given
    dims = tuple(sorted(d % rank for d in numbers))
    if 0 in dims:
        raise call.refused("reduces over the images of a batch")
    return dims


def _mean(call: Call) -> Value:
    return call.emit(Mean(_dims(call), bool(call.get("keepdim"))), call.value("self"))


def _variance(*, root: bool) -> Converter:
    """Make the converter of var or std: the mean of the squared distance from the mean."""

    def convert(call: Call) -> Value:
        dims, source = _dims(call), call.value("self")
        counts = [torch.Size(shape[d] for d in dims).numel() for shape in call.shapes("self")]
        correction = call.get("correction") if call.has("correction") else int(call.get("unbiased"))
        correction = 1 if correction is None else correction
        distance = call.emit(Binary("sub"), source, call.emit(Mean(dims, True), source))
        made = call.emit(Mean(dims, bool(call.get("keepdim"))), call.emit(Unary("square"), distance))
        if correction:
            if counts[0] != counts[1]:
                raise call.varies("the number of elements of an unbiased variance")
            made = call.emit(Binary("mul"), made, call.scalar(counts[0] / (counts[0] - correction)))
        return call.emit(Unary("sqrt"), made) if root else made

    return convert


def _affine(call: Call, channels: int) -> tuple[str, str]:
    """Give weight and bias of a normalisation; 1 and 0 where the module has none."""
    like = call.node.meta["val"]
    like = like[0] if isinstance(like, tuple | list) else like
    default = {"weight": torch.ones, "bias": torch.zeros}
    names = [
        call.value(part)
        if call.raw(part) is not None
        else call.weight(make(channels, dtype=like.dtype, device=like.device), f"{call.node.name}.{part}")
        for part, make in default.items()
    ]
    return names[0], names[1]


def _batch_norm(call: Call) -> Value:
    if call.get("training", False) or call.raw("running_mean") is None or call.raw("running_var") is None:
        raise call.refused("normalises by the statistics of the batch it is given")
    source, eps = call.value("input"), float(call.get("eps"))
    affine = _affine(call, call.shapes("input")[0][1])
    made = call.emit(BatchNorm(eps), source, *affine, call.value("running_mean"), call.value("running_var"))
    return {0: made} if call.target.startswith("_native") else made


def _instance_norm(call: Call) -> Value:
    if not call.get("use_input_stats"):
        return _batch_norm(call)
    return call.emit(
        GroupNorm(0, float(call.get("eps"))), call.value("input"), *_affine(call, call.shapes("input")[0][1])
    )


def _group_norm(call: Call) -> Value:
    affine = _affine(call, call.shapes("input")[0][1])
    return call.emit(GroupNorm(call.get("num_groups"), float(call.get("eps"))), call.value("input"), *affine)


STATISTICS: dict[str, Converter] = {
    "max_pool2d.default": _pool("max"),
    "max_pool2d_with_indices.default": _pool("max"),
    "avg_pool2d.default": _pool("avg"),
    "adaptive_avg_pool2d.default": _adaptive_pool("avg"),
    "adaptive_max_pool2d.default": _adaptive_pool("max"),
    "mean.dim": _mean,
    "var.dim": _variance(root=False),
    "var.correction": _variance(root=False),
    "std.dim": _variance(root=True),
    "std.correction": _variance(root=True),
    "batch_norm.default": _batch_norm,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "instance_norm.default": _instance_norm,
    "group_norm.default": _group_norm,
}
