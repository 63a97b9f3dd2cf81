"""Launches of the kernels without a product, for the ahead-of-time gate: the shapes and chains the zoo has."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from tilefuse.kernels import (
    elementwise,
    image_load,
    image_store,
    norm,
    pad,
    pixel_norm,
    pixel_shuffle,
    pixel_unshuffle,
    pool,
    resize,
)
from tilefuse.kernels.elementwise import OPS, Step
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.norm import APPLY

SIZE = 96
HALF, SINGLE = torch.float16, torch.float32
# SPAN's gate: (a + b) · (sigmoid(a) - 1/2).
GATE = (Step("add", 0, 1), Step("sigmoid", 0), Step("constant", number=0.5), Step("sub", 3, 4), Step("mul", 2, 5))

_make = partial(torch.empty, device="meta")


def plain_cases(_target: int) -> Iterator[Launch]:
    """Give every kernel with every configuration that the zoo's shapes pick, in half and single precision."""
    for dtype in (HALF, SINGLE):
        image = partial(_make, 1, SIZE, SIZE, dtype=dtype)
        for channels, factor in ((48, 4), (27, 3), (12, 2), (256, 2)):
            large = _make(1, SIZE * factor, SIZE * factor, channels // factor**2, dtype=dtype)
            yield pixel_shuffle.plan_launch(image(channels), large, factor, True)
            yield pixel_unshuffle.plan_launch(large, image(channels), factor, True)
        for mode, channels in enumerate((3, 64, 3, 128)):
            yield pad.plan_launch(image(channels), _make(1, SIZE + 2, SIZE + 2, channels, dtype=dtype), 1, 1, mode, 0.0)
        for taps, channels in ((1, 3), (1, 64), (2, 64), (4, 3)):
            index, weight = _make(taps, 2 * SIZE, dtype=torch.int32), _make(taps, 2 * SIZE)
            large = _make(1, 2 * SIZE, 2 * SIZE, channels, dtype=dtype)
            yield resize.plan_launch(image(channels), index, weight, index, weight, large)
        for maximum, edge in ((True, 2), (True, 3), (False, 2)):
            out = _make(1, SIZE // 2, SIZE // 2, 64, dtype=dtype)
            yield pool.plan_launch(image(64), out, maximum, [edge] * 2, [2, 2], [0] * 4, [1, 1], True)
        for channels in (48, 64):
            yield _chain([image(channels), image(channels)], GATE)
            yield _chain([image(channels)], ())
            statistics = [_make(1, 1, 1, channels)] * 3
            yield _chain([image(channels), *statistics], (*APPLY, Step("relu", 6)))
        for channels in (3, 32, 64, 128):
            scratch, out = _make(norm.scratch_shape(1, SIZE, SIZE, channels)), _make(3, 1, 1, 1, channels)
            weight = _make(channels)
            yield from norm.plan_launches(image(channels), weight, weight, scratch, out, channels, 1e-5)
            yield pixel_norm.plan_launch(image(channels), image(channels), 1e-8)
        for kind in (torch.uint8, torch.uint16):
            flag = _make(1, dtype=torch.int32)
            for channels in (1, 3, 4):
                yield image_load.plan_launch(_make(1, SIZE, SIZE, channels, dtype=kind), image(channels), 1 / 255)
                pixels = _make(1, SIZE, SIZE, channels, dtype=kind)
                yield image_store.plan_launch(image(channels), pixels, flag, 0.0, 255.0)
        planes = _make(1, 3, SIZE, SIZE).permute(0, 2, 3, 1)
        yield image_load.plan_launch(planes, image(3), 1.0)
    for op in OPS:
        yield _chain([_make(1, SIZE, SIZE, 64, dtype=HALF)] * 2, (Step(op, 0, 1, 0.2),))


def _chain(inputs: list[torch.Tensor], steps: tuple[Step, ...]) -> Launch:
    codes = [part for step in steps for part in (OPS.index(step.op), step.a, step.b)]
    shape = inputs[0].shape
    out = torch.empty_like(inputs[0])
    return elementwise.plan_launch([x.expand(shape) for x in inputs], out, codes, [step.number for step in steps])
