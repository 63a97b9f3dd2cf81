"""Integer pixels in a program's own calls: read by the first convolutions, written by the last.

What does not fit is left as it is, and the session converts around the program: `image_load`, `image_store`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import torch

from tilefuse.backends.triton.operations import Chained, Convolve
from tilefuse.backends.triton.places import Call, Place
from tilefuse.kernels.conv_config import FEWEST_ROWS
from tilefuse.kernels.convolve import makes_whole, packing
from tilefuse.kernels.image_store import FULL_SCALE
from tilefuse.kernels.layer import Layer

Layered: TypeAlias = Convolve | Chained


@dataclass(frozen=True, eq=False)
class PixelCalls:
    """Calls of a program of which some take or give integers. `flag` int32 [1] is set behind values not finite."""

    calls: tuple[Call, ...]
    source: Place
    result: Place
    flag: Place | None


def fuse_pixels(calls: Sequence[Call], source: Place, result: Place, dtype: torch.dtype, flag: Place) -> PixelCalls:
    """Let the calls that read `source` and the one that writes `result` convert integers of `dtype` by themselves.

    The bits are those of `image_load` and `image_store` around the program; each end is left as it is where a call
    can't do that, or would be the slower for it. `flag` is where the last call tells of values that are not finite.
    """
    done = tuple(calls)
    touching = [call for call in done if any(source.buffer == place.buffer for place in (*call.reads, *call.writes))]
    if source.buffer != result.buffer and touching and all(_takes(call, source) for call in touching):
        done = tuple(_taking(call, dtype) if call in touching else call for call in done)
        source = replace(source, dtype=dtype)
    touching = [call for call in done if any(result.buffer == place.buffer for place in (*call.reads, *call.writes))]
    if len(touching) == 1 and _gives(touching[0], result, dtype):
        result = replace(result, dtype=dtype)
        done = tuple(_giving(call, result, flag) if call is touching[0] else call for call in done)
        return PixelCalls(done, source, result, flag)
    return PixelCalls(done, source, result, None)


def takes_pixels(inputs: int) -> bool:
    """Tell whether a layer of so many input channels reads integers as fast as floats.

    With few channels every element of either is gathered by an instruction of its own, so the conversion is free. From
    16 on floats come by TMA or by asynchronous copies, which can't convert: there `image_load` is the faster way.
    """
    return inputs < FEWEST_ROWS


def stores_pixels(layer: Layer, place: Place, dtype: torch.dtype) -> bool:
    """Tell whether a layer writes integers of `dtype` to a place in words of several values, and can flag them.

    Single values cost two or four times the stores of `image_store`'s words: a pixel shuffle by 3 writes 9 values side
    by side, a width that 4 does not divide begins rows inside of words. There the float result is written and
    `image_store` reads it again; as where pixels past the edge are made, which would be flagged too.
    """
    out = torch.empty_strided(place.shape, place.strides, dtype=dtype, device="meta")
    return packing(out, layer) > 1 and makes_whole(layer, *place.shape[1:3])


def _takes(call: Call, source: Place) -> bool:
    """Tell whether a call reads the image as its layer's input and in no other way."""
    operation, (read, *others) = call.operation, (*call.reads, *call.writes)
    if read.buffer != source.buffer or any(place.buffer == source.buffer for place in others):
        return False
    match operation:
        case Convolve(layer=layer):
            return takes_pixels(layer.inputs)
        case Chained(chain=chain):
            return takes_pixels(chain.links[0].inputs)
    return False


def _gives(call: Call, result: Place, dtype: torch.dtype) -> bool:
    """Tell whether a call makes the whole result, dense, by a layer that stores integers in words."""
    operation = call.operation
    if not isinstance(operation, Layered) or call.writes[-1] != result or not result.is_dense:
        return False
    layer = operation.layer if isinstance(operation, Convolve) else operation.chain.last
    return operation.epilogue.out_dtype is None and stores_pixels(layer, result, dtype)


def _taking(call: Call, dtype: torch.dtype) -> Call:
    read, *others = call.reads
    operation = replace(cast(Layered, call.operation), input_scale=1 / FULL_SCALE[dtype])
    return replace(call, reads=(replace(read, dtype=dtype), *others), operation=operation)


def _giving(call: Call, result: Place, flag: Place) -> Call:
    operation = cast(Layered, call.operation)
    epilogue = replace(operation.epilogue, levels=True, out_dtype=result.dtype)
    return replace(call, writes=(*call.writes[:-1], result, flag), operation=replace(operation, epilogue=epilogue))
