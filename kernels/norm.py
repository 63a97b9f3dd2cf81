"""Instance and group normalisation: statistics as (count, mean, M2) of chunks of pixels, merged in a fixed order.

Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979. The order of
the sums depends on the size of the image alone, so an image's result doesn't depend on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.aliasing import require_apart
from tilefuse.kernels.elementwise import Step, elementwise
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.operators import operator
from tilefuse.kernels.tensors import (
    INTERPRETED,
    bind,
    check_image,
    check_place,
    check_tensor,
    power_of_two,
    result,
)
from tilefuse.kernels.toolchain import FLOATS, jit, tl

APPLY = (Step("sub", 0, 1), Step("mul", 4, 2), Step("add", 5, 3))


@dataclass(frozen=True)
class NormConfig:
    """`chunk` pixels make one (count, mean, M2), read `pixels` at a time; `merged` of those are merged at a time."""

    chunk: int = 1024
    pixels: int = 32
    channels: int = 64
    merged: int = 32
    num_warps: int = 4

    def chunks(self, height: int, width: int) -> int:
        """Chunks of one image."""
        return -(-height * width // self.chunk)


def norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5, *, out: Tensor | None = None
) -> Tensor:
    """Normalise [N, H, W, C] over space and groups of channels, times `weight` [C] plus `bias` [C]; 0 groups: one each.

    Raises:
        BackendError: a type, device or shape the kernel doesn't take.
    """
    check_image("norm", "x", x)
    out = result("norm", x, (x.shape[0], x.shape[1], x.shape[2], x.shape[3]), out, in_place=True)
    check_place("norm", out, x, "x")
    mean, scale, _ = norm_statistics(x, groups, weight, bias, eps)
    return elementwise((x, mean, scale, bias.view(1, 1, 1, -1)), APPLY, out=out)


def norm_ref(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute the same in plain torch."""
    mean, scale, _ = norm_statistics_ref(x, groups, weight, bias, eps)
    return ((x.float() - mean) * scale + bias.float()).to(x.dtype)


def norm_statistics(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    *, scratch: Tensor | None = None, out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Give float32 [N, 1, 1, C]: the mean of every channel's group, scale = weight / sqrt(variance + eps), and shift.

    The norm is (x - mean) · scale + bias, or, as a convolution's prologue takes it, x · scale + shift, which is less
    exact where the mean is large beside the deviation. `scratch` is float32 of `scratch_shape`, `out` float32
    [3, N, 1, 1, C], both dense.

    Raises:
        BackendError: a type, device or shape the kernel doesn't take.
    """
    check_image("norm", "x", x)
    n, h, w, c = x.shape
    if min(h, w, c) < 1:
        raise BackendError(f"norm: x is {h}x{w} with {c} channels; at least one pixel and one channel are accepted")
    groups = groups or c
    if groups < 0 or c % groups:
        raise BackendError(f"norm: x has {c} channels; a multiple of the {groups} groups is accepted")
    for name, given in (("weight", weight), ("bias", bias)):
        if given is not None:
            check_tensor("norm", name, given, FLOATS, like=x)
            if tuple(given.shape) != (c,) or not given.is_contiguous():
                raise BackendError(f"norm: {name} has the shape {list(given.shape)}; a dense [{c}] is accepted")
    scratch = _dense("scratch", scratch, scratch_shape(n, h, w, c), x)
    out = _dense("out", out, (3, n, 1, 1, c), x)
    if x.numel():
        _launch(x, weight, bias, scratch, out, groups, eps)
    return out[0], out[1], out[2]


def norm_statistics_ref(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the same in plain torch."""
    n, _, _, c = x.shape
    groups = groups or c
    flat = x.float().reshape(n, -1, groups, c // groups).transpose(1, 2).reshape(n, groups, -1)
    variance, mean = torch.var_mean(flat, dim=2, correction=0)
    mean, scale = (t.repeat_interleave(c // groups, 1).view(n, 1, 1, c) for t in (mean, torch.rsqrt(variance + eps)))
    scale = scale if weight is None else scale * weight.float()
    return mean, scale, (0.0 if bias is None else bias.float()) - mean * scale


def scratch_shape(n: int, h: int, w: int, c: int) -> tuple[int, int, int, int]:
    """Shape of the statistics of all chunks."""
    return n, pick_config(c, interpreted=INTERPRETED).chunks(h, w), 2, c


def pick_config(channels: int, *, interpreted: bool = False) -> NormConfig:
    """Choose the chunks by the channels alone, never by the batch: the order of the sums is part of the result."""
    wide = min(power_of_two(channels), 64)
    return NormConfig(pixels=1024, channels=wide) if interpreted else NormConfig(channels=wide)


def _dense(name: str, given: Tensor | None, shape: tuple[int, ...], x: Tensor) -> Tensor:
    if given is None:
        return torch.empty(shape, dtype=torch.float32, device=x.device)
    check_tensor("norm", name, given, (torch.float32,), like=x)
    if tuple(given.shape) != shape or not given.is_contiguous():
        raise BackendError(f"norm: {name} has the shape {list(given.shape)}; a dense {list(shape)} is accepted")
    require_apart(given, x, f"norm: {name}", "x")
    return given


def plan_launches(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scratch: Tensor, out: Tensor, groups: int, eps: float
) -> tuple[Launch, Launch]:
    """Choose the configurations and the arguments of a checked call; meta tensors do."""
    n, h, w, c = x.shape
    config = pick_config(c, interpreted=INTERPRETED)
    chunks = config.chunks(h, w)
    chunk = bind(
        "norm_chunk", _norm_chunk_kernel, (n * chunks, -(-c // config.channels)), config,
        x, scratch, chunks, h * w, w, *x.stride(), c, config.chunk, config.pixels, config.channels,
    )  # fmt: skip
    merge = bind(
        "norm_merge", _norm_merge_kernel, (n, groups), config,
        scratch, x if weight is None else weight, x if bias is None else bias, out, chunks, h * w, n * c, eps, c,
        c // groups, power_of_two(c // groups), weight is not None, bias is not None, config.chunk, config.merged,
    )  # fmt: skip
    return chunk, merge


@operator("tilefuse::norm_statistics", writes=("scratch", "out"))
def _launch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scratch: Tensor, out: Tensor, groups: int, eps: float
) -> Iterable[Launch]:
    return plan_launches(x, weight, bias, scratch, out, groups, eps)


@jit
def _norm_chunk_kernel(
    x_ptr, scratch_ptr, chunks, image_pixels, width, xn, xh, xw, xc,
    C: tl.constexpr, CHUNK: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    n, first = program // chunks, program % chunks * CHUNK
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    count = tl.zeros((), tl.float32)
    mean = tl.zeros((CHANNELS,), tl.float32)
    m2 = tl.zeros((CHANNELS,), tl.float32)
    for start in range(0, CHUNK, PIXELS):
        pixel = first + start + tl.arange(0, PIXELS)
        inside = (pixel < image_pixels)[:, None] & (c < C)[None, :]
        source = x_ptr + n * xn + (pixel // width * xh + pixel % width * xw)[:, None] + c.to(tl.int64)[None, :] * xc
        value = tl.load(source, mask=inside, other=0.0).to(tl.float32)  # [PIXELS, CHANNELS]
        added = tl.minimum(tl.maximum(image_pixels - first - start, 0), PIXELS).to(tl.float32)
        divisor = tl.maximum(added, 1.0)
        part_mean = tl.sum(value, 0) / divisor
        away = tl.where(inside, value - part_mean[None, :], 0.0)
        both = tl.maximum(count + added, 1.0)
        delta = part_mean - mean
        mean += delta * (added / both)
        m2 += tl.sum(away * away, 0) + delta * delta * (count * added / both)
        count += added
    target = scratch_ptr + program * 2 * C + c  # [N, chunks, 2, C]
    tl.store(target, mean, mask=c < C)
    tl.store(target + C, m2, mask=c < C)


@jit
def _norm_merge_kernel(
    scratch_ptr, weight_ptr, bias_ptr, out_ptr, chunks, image_pixels, plane, eps,
    C: tl.constexpr, GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, CHUNK: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    member = tl.arange(0, GROUP_BLOCK)
    c = tl.program_id(1) * GROUP + member
    count = tl.zeros((), tl.float32)
    mean = tl.zeros((), tl.float32)
    m2 = tl.zeros((), tl.float32)
    # A range of a runtime length fails in the interpreter under NumPy 2.4.
    start = 0
    while start < chunks:
        chunk = start + tl.arange(0, MERGED)
        inside = (chunk < chunks)[:, None] & (member < GROUP)[None, :]
        source = scratch_ptr + (n * chunks + chunk)[:, None] * 2 * C + c[None, :]
        part_mean = tl.load(source, mask=inside, other=0.0)  # [MERGED, GROUP_BLOCK]
        part_m2 = tl.load(source + C, mask=inside, other=0.0)
        pixels = tl.minimum(tl.maximum(image_pixels - chunk.to(tl.int64) * CHUNK, 0), CHUNK).to(tl.float32)
        weight = tl.where(inside, pixels[:, None], 0.0)
        added = tl.sum(tl.sum(weight, 1), 0)
        added_mean = tl.sum(tl.sum(part_mean * weight, 1), 0) / added
        away = part_mean - added_mean
        added_m2 = tl.sum(tl.sum(part_m2 + away * away * weight, 1), 0)
        both = count + added
        delta = added_mean - mean
        mean += delta * (added / both)
        m2 += added_m2 + delta * delta * (count * added / both)
        count = both
        start += MERGED
    scale = 1.0 / tl.sqrt_rn(m2 / count + eps) + tl.zeros((GROUP_BLOCK,), tl.float32)
    if HAS_WEIGHT:
        scale = scale * tl.load(weight_ptr + c, mask=member < GROUP, other=0.0).to(tl.float32)
    shift = -mean * scale
    if HAS_BIAS:
        shift += tl.load(bias_ptr + c, mask=member < GROUP, other=0.0).to(tl.float32)
    target = out_ptr + n * C + c  # [3, N, C]
    tl.store(target, mean + tl.zeros((GROUP_BLOCK,), tl.float32), mask=member < GROUP)
    tl.store(target + plane, scale, mask=member < GROUP)
    tl.store(target + 2 * plane, shift, mask=member < GROUP)
