"""ONNX ops that move elements: reshapes, slices, padding, shuffles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilefuse.errors import ModelError
from tilefuse.importers.onnx_builder import Constant, Tensor, Value, View
from tilefuse.importers.onnx_call import Call
from tilefuse.importers.onnx_shapes import Dims, element_count
from tilefuse.importers.onnx_sizes import Dim, Number, Size, divide, floor, least
from tilefuse.importers.onnx_views import Layout, reshape_op, whole
from tilefuse.ops import (
    Concat,
    Pad,
    PadMode,
    PixelShuffle,
    PixelUnshuffle,
    ShuffleOrder,
    Slice,
)

Ints = Sequence[int] | None
PAD_MODES: dict[str, PadMode] = {
    "constant": "constant",
    "reflect": "reflect",
    "edge": "replicate",
    "wrap": "circular",
}


def shape(call: Call, *, start: int = 0, end: int | None = None) -> Value:
    sizes = call.value(0).shape[start:end]
    array = np.empty(len(sizes), dtype=object)
    array[:] = sizes
    return Constant(call.outputs[0], array if any(isinstance(s, Size) for s in sizes) else array.astype(np.int64))


def identity(call: Call) -> Value:
    return call.value(0)


def dropout(call: Call, *, ratio: float = 0.5, seed: int = 0) -> Value:
    del ratio, seed  # concern training
    if call.has(2) and call.scalar(2, "training_mode"):
        raise call.refuse("training_mode = 1 is not supported; export the model in eval mode")
    return call.value(0)


def reshape(call: Call, *, allowzero: int = 0) -> Value:
    x = call.value(0)
    wanted = list(call.dims(1, "the input shape"))
    if wanted.count(-1) > 1 or any(isinstance(size, int) and size < -1 for size in wanted):
        raise call.refuse(f"shape [{', '.join(map(str, wanted))}] is not valid")
    if 0 in wanted and allowzero:
        raise call.refuse("attribute allowzero = 1 makes an empty tensor")
    sizes: list[Dim] = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    if -1 not in sizes:
        return _reshaped(call, x, tuple(sizes))
    at = sizes.index(-1)
    rest = element_count(tuple(size for i, size in enumerate(sizes) if i != at))
    try:
        # Where the quotient is no whole number the reshape itself fails, so rounding it changes no result.
        sizes[at] = _whole(call, floor(divide(element_count(x.shape), rest)))
    except ModelError:
        layout = _layout(x).reshaped([None if size == -1 else size for size in sizes])
        if layout is None:
            raise
        return call.view(x, layout)
    return _reshaped(call, x, tuple(sizes))


def flatten(call: Call, *, axis: int = 1) -> Value:
    x = call.value(0)
    axis = axis + len(x.shape) if axis < 0 else axis
    sizes = element_count(x.shape[:axis]), element_count(x.shape[axis:])
    return _reshaped(call, x, tuple(_whole(call, size) for size in sizes))


def squeeze(call: Call, *, axes: Ints = None) -> Value:
    x = call.value(0)
    given = call.ints(1, "axes") if call.has(1) else axes
    if given is None:
        if any(isinstance(size, Size) for size in x.shape):
            raise call.refuse("axes must be given where sizes are unknown")
        given = [i for i, size in enumerate(x.shape) if size == 1]
    elif not given:
        raise call.refuse("axes = [] is not defined")
    dropped = {axis % len(x.shape) for axis in given}
    if any(x.shape[axis] != 1 for axis in dropped):
        raise call.refuse(f"axes = {sorted(dropped)} of a tensor of [{', '.join(map(str, x.shape))}]")
    return _reshaped(call, x, tuple(size for i, size in enumerate(x.shape) if i not in dropped))


def unsqueeze(call: Call, *, axes: Ints = None) -> Value:
    x = call.value(0)
    given = call.ints(1, "axes") if call.has(1) else axes or ()
    rank = len(x.shape) + len(given)
    added = {axis % rank for axis in given}
    sizes = iter(x.shape)
    return _reshaped(call, x, tuple(1 if i in added else next(sizes) for i in range(rank)))


def transpose(call: Call, *, perm: Ints = None) -> Value:
    x = call.value(0)
    order = list(reversed(range(len(x.shape)))) if perm is None else list(perm)
    return call.view(x, _layout(x).transposed(order))


def expand(call: Call) -> Value:
    x = call.value(0)
    sizes = call.dims(1, "the input shape")
    rank = max(len(sizes), len(x.shape))
    layout = _layout(x).expanded((1,) * (rank - len(sizes)) + sizes)
    if layout is None:
        raise call.refuse(f"shape [{', '.join(map(str, sizes))}] from [{', '.join(map(str, x.shape))}]")
    return call.view(x, layout)


def tile(call: Call) -> Value:
    x = call.value(0)
    return call.view(x, _layout(x).tiled(call.ints(1, "repeats")))


def concat(call: Call, *, axis: int) -> Value:
    values = call.values()
    return call.add(Concat(axis), *values) if len(values) > 1 else values[0]


def split(call: Call, *, axis: int = 0, split: Ints = None, num_outputs: int | None = None) -> tuple[Value, ...]:
    x = call.value(0)
    axis %= len(x.shape)
    parts = list(call.ints(1, "split")) if call.has(1) else list(split or ())
    if not parts:
        size = x.shape[axis]
        if not isinstance(size, int):
            raise call.refuse(f"attribute axis = {axis} has an unknown size; split must be given")
        step = -(-size // (num_outputs or len(call.outputs)))
        parts = [min(step, size - start) for start in range(0, size, step)] if step else []
    if len(parts) != len(call.outputs):
        raise call.refuse(f"split = {parts} for {len(call.outputs)} outputs")
    starts = [sum(parts[:i]) for i in range(len(parts))]
    return tuple(call.add(Slice(axis, start, start + part), x) for start, part in zip(starts, parts, strict=True))


def slice_(call: Call, *, starts: Ints = None, ends: Ints = None, axes: Ints = None) -> Value:
    x = call.value(0)
    first: Sequence[Dim] = starts if starts is not None else call.dims(1, "starts")
    last: Sequence[Dim] = ends if ends is not None else call.dims(2, "ends")
    along = axes if axes is not None else call.ints(3, "axes") if call.has(3) else range(len(first))
    steps = call.ints(4, "steps") if call.has(4) else (1,) * len(first)
    for start, stop, axis, step in zip(first, last, along, steps, strict=True):
        axis %= len(x.shape)
        if step < 1:
            raise call.refuse(f"steps = {list(steps)}: only steps of at least 1 are supported")
        size = x.shape[axis]
        begin, end = _bound(call, start, size, "starts"), _bound(call, stop, size, "ends")
        if begin is None:
            raise call.refuse(f"starts = {start} lies past the end")
        if (begin, end, step) != (0, None, 1):
            x = call.add(Slice(axis, begin, end, step), x)
    return x


def _bound(call: Call, bound: Dim, size: Dim, what: str) -> int | None:
    """Write a slice's bound as Python does: from the end where it moves with the size, None for the end itself."""
    if isinstance(size, Size) and isinstance(bound, Size):
        distance = bound - size
        if isinstance(distance, int):
            return distance if distance < 0 else None
        low = least(distance)
        if low is not None and low >= 0:
            return None
        raise call.refuse(f"{what} = {bound} depends on the size of the image")
    if isinstance(bound, Size):
        raise call.refuse(f"{what} = {bound} depends on the size of the image")
    if bound >= (size if isinstance(size, int) else 2**31 - 1):
        return None if what == "ends" else bound
    return bound


def gather(call: Call, *, axis: int = 0) -> Value:
    x = call.value(0)
    axis %= len(x.shape)
    indices = call.constant(1, "indices")
    size = x.shape[axis]
    if indices.dtype == object or not isinstance(size, int):
        raise call.refuse(f"axis = {axis} of an unknown size")
    flat = [int(i) + (size if i < 0 else 0) for i in indices.reshape(-1)]
    if any(not 0 <= i < size for i in flat):
        raise call.refuse(f"indices = {flat} of an axis of {size}")
    if indices.ndim == 0:
        kept = call.add(Slice(axis, flat[0], flat[0] + 1), x)
        return _reshaped(call, kept, (*x.shape[:axis], *x.shape[axis + 1 :]))
    if axis != 1 or indices.ndim != 1 or len(x.shape) != 4:
        raise call.refuse(f"axis = {axis} with indices of rank {indices.ndim}; only channels can be gathered")
    return call.builder.select_channels(call.builder.tensor(x), flat, call.outputs[0])


def depth_to_space(call: Call, *, blocksize: int, mode: str = "DCR") -> Value:
    return call.add(PixelShuffle(blocksize, _order(call, mode, blocksize)), call.image(0))


def space_to_depth(call: Call, *, blocksize: int, mode: str = "DCR") -> Value:
    return call.add(PixelUnshuffle(blocksize, _order(call, mode, blocksize)), call.image(0))


def _order(call: Call, mode: str, blocksize: int) -> ShuffleOrder:
    if mode not in ("DCR", "CRD") or blocksize < 1:
        raise call.refuse(f"attributes mode = {mode} and blocksize = {blocksize} are not supported")
    return "crd" if mode == "CRD" else "dcr"


def pad(call: Call, *, mode: str = "constant", pads: Ints = None, value: float = 0.0) -> Value:
    x = call.value(0)
    rank = len(x.shape)
    given = list(pads) if pads is not None else list(call.ints(1, "pads"))
    filler = call.scalar(2, "constant_value") if call.has(2) else value
    axes = [axis % rank for axis in call.ints(3, "axes")] if call.has(3) else list(range(rank))
    if mode not in PAD_MODES:
        raise call.refuse(f"attribute mode = {mode} is not supported")
    if len(given) != 2 * len(axes) or np.isnan(filler):
        raise call.refuse(f"pads = {given} of {filler} for {len(axes)} axes")
    before = dict(zip(axes, given[: len(axes)], strict=True))
    after = dict(zip(axes, given[len(axes) :], strict=True))
    if rank < 2 or any(before.get(i, 0) or after.get(i, 0) for i in range(rank - 2)):
        raise call.refuse(f"pads = {given}: only height and width (the last two axes) can be padded")
    sides = (before.get(rank - 2, 0), before.get(rank - 1, 0), after.get(rank - 2, 0), after.get(rank - 1, 0))
    if mode != "constant" and (rank != 4 or min(sides) < 0):
        raise call.refuse(f"pads = {given} with attribute mode = {mode} on a tensor of rank {rank}")
    return call.add(Pad(sides, PAD_MODES[mode], filler), x) if any(sides) else x


def _layout(x: Value) -> Layout:
    return x.layout if isinstance(x, View) else whole(x.shape)


def _whole(call: Call, size: Number) -> Dim:
    if not isinstance(size, int | Size):
        raise call.refuse(f"shape: a size of {size} is not whole")
    return size


def _reshaped(call: Call, x: Value, sizes: Dims) -> Value:
    """Reshape as a view where the borders of the dimensions allow it, else as an op."""
    layout = _layout(x).reshaped(sizes)
    if layout is not None:
        return call.view(x, layout)
    op = reshape_op(x.shape, sizes)
    if op is None:
        given, wanted = (", ".join(map(str, s)) for s in (x.shape, sizes))
        raise call.refuse(f"shape [{wanted}] from [{given}] has more than one unknown size")
    made = call.builder.tensor(call.add(op, x))
    return Tensor(made.name, sizes)
