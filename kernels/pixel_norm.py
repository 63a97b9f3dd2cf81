"""Pixel norm: the channel vector of each pixel scaled to unit mean square (Karras et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.operators import operator
from tilefuse.kernels.tensors import INTERPRETED, RowTile, bind, check_image, power_of_two, result
from tilefuse.kernels.toolchain import jit, tl

MOST_CHANNELS = 8192


def pixel_norm(x: Tensor, eps: float = 1e-8, *, out: Tensor | None = None) -> Tensor:
    """Divide [N, H, W, C] by the root of the mean square over its channels, plus `eps` under the root.

    Raises:
        BackendError: a type, device or shape the kernel doesn't take.
    """
    check_image("pixel_norm", "x", x)
    n, h, w, c = x.shape
    if not 0 < c <= MOST_CHANNELS:
        raise BackendError(f"pixel_norm: x has {c} channels; 1 to {MOST_CHANNELS} are accepted")
    out = result("pixel_norm", x, (n, h, w, c), out)
    if out.numel():
        _launch(x, out, eps)
    return out


def pixel_norm_ref(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Compute the same in plain torch."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(3, keepdim=True) + eps)).to(x.dtype)


def pick_config(channels: int, *, interpreted: bool = False) -> RowTile:
    """Choose how many pixels of `channels` channels one program makes."""
    wide = power_of_two(channels)
    return RowTile(max(1, (1 << 15 if interpreted else 2048) // wide), wide)


def plan_launch(x: Tensor, out: Tensor, eps: float) -> Launch:
    """Choose the configuration and the arguments of a checked call; meta tensors do."""
    n, h, w, c = x.shape
    config = pick_config(c, interpreted=INTERPRETED)
    return bind("pixel_norm", _pixel_norm_kernel, (-(-n * h * w // config.rows),), config,
        x, out, n * h * w, h, w, eps, *x.stride(), *out.stride(), c, config.rows, config.columns,
    )  # fmt: skip


@operator("tilefuse::pixel_norm", writes=("out",))
def _launch(x: Tensor, out: Tensor, eps: float) -> Iterable[Launch]:
    return (plan_launch(x, out, eps),)


@jit
def _pixel_norm_kernel(
    x_ptr, out_ptr, pixels, height, width, eps, xn, xh, xw, xc, on, oh, ow, oc,
    C: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    c = tl.arange(0, CHANNELS)[None, :].to(tl.int64)
    mask = (pixel < pixels) & (c < C)
    row, x = pixel // width, pixel % width
    n, y = row // height, row % height
    value = tl.load(x_ptr + n * xn + y * xh + x * xw + c * xc, mask=mask, other=0.0).to(
        tl.float32
    )  # [PIXELS, CHANNELS]
    scaled = value / tl.sqrt_rn(tl.sum(value * value, 1) / C + eps)[:, None]
    tl.store(out_ptr + n * on + y * oh + x * ow + c * oc, scaled.to(out_ptr.dtype.element_ty), mask=mask)
