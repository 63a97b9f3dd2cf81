"""Padding and cropping of height and width."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.operators import operator
from tilefuse.kernels.tensors import INTERPRETED, RowTile, bind, check_image, result, row_tile
from tilefuse.kernels.toolchain import jit, tl

MODES = ("constant", "reflect", "replicate", "circular")


def pad(
    x: Tensor,
    sides: tuple[int, int, int, int],
    mode: str = "constant",
    value: float = 0.0,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Pad [N, H, W, C] by `sides` (top, left, bottom, right); negative numbers crop.

    Raises:
        BackendError: a type or device the kernel doesn't take, or more padding than the mode can take from the image.
    """
    check_image("pad", "x", x)
    if mode not in MODES:
        raise BackendError(f"pad: the mode is {mode!r}; {', '.join(MODES)} are accepted")
    if mode == "circular":
        # A wrapped row is one that is left after cropping.
        top, left, bottom, right = (max(-side, 0) for side in sides)
        x = x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]
        sides = (max(sides[0], 0), max(sides[1], 0), max(sides[2], 0), max(sides[3], 0))
    n, h, w, c = x.shape
    top, left, bottom, right = sides
    limit = {"reflect": 1, "circular": 0}.get(mode)
    if limit is not None and n and (max(top, bottom) > h - limit or max(left, right) > w - limit):
        raise BackendError(f"pad: {list(sides)} in mode {mode}; x is {h}x{w}, at most {h - limit}, {w - limit} a side")
    if mode != "constant" and n and min(h, w) < 1:
        raise BackendError(f"pad: x is {h}x{w}; at least one pixel is accepted in mode {mode}")
    if top + bottom + h < 1 or left + right + w < 1:
        raise BackendError(f"pad: {list(sides)} leave nothing of x, which is {h}x{w}")
    out = result("pad", x, (n, h + top + bottom, w + left + right, c), out)
    if out.numel():
        _launch(x, out, top, left, MODES.index(mode), value)
    return out


def pad_ref(x: Tensor, sides: tuple[int, int, int, int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Compute the same in plain torch."""
    top, left, bottom, right = sides
    order = (left, right, top, bottom)
    planes = x.permute(0, 3, 1, 2)
    if mode == "circular":
        planes = F.pad(planes, [min(side, 0) for side in order])
        order = (max(left, 0), max(right, 0), max(top, 0), max(bottom, 0))
    padded = F.pad(planes, order, value=value) if mode == "constant" else F.pad(planes, order, mode=mode)
    return padded.permute(0, 2, 3, 1)


def pick_config(rows: int, columns: int, *, interpreted: bool = False) -> RowTile:
    """Choose the tile of the result that one program makes."""
    return row_tile(rows, columns, interpreted=interpreted)


def plan_launch(x: Tensor, out: Tensor, top: int, left: int, mode: int, value: float) -> Launch:
    """Choose the configuration and the arguments of a checked call; meta tensors do."""
    n, h, w, c = out.shape
    config = pick_config(n * h, w * c, interpreted=INTERPRETED)
    return bind("pad", _pad_kernel, config.grid(n * h, w * c), config,
        x, out, n * h, h, w, x.shape[1], x.shape[2], top, left, value, *x.stride(), *out.stride(),
        c, mode, config.rows, config.columns,
    )  # fmt: skip


@operator("tilefuse::pad", writes=("out",))
def _launch(x: Tensor, out: Tensor, top: int, left: int, kind: int, value: float) -> Iterable[Launch]:
    # Not `mode`: torch.compile passes an argument of that name of its own.
    return (plan_launch(x, out, top, left, kind, value),)


@jit
def _source(position, size, MODE: tl.constexpr):
    if MODE == 1:
        position = tl.abs(position)
        position = size - 1 - tl.abs(size - 1 - position)
    elif MODE == 2:
        position = tl.minimum(tl.maximum(position, 0), size - 1)
    elif MODE == 3:
        position = (position + size) % size
    return position


@jit
def _pad_kernel(
    x_ptr, out_ptr, all_rows, height, width, x_height, x_width, top, left, value, xn, xh, xw, xc, on, oh, ow, oc,
    C: tl.constexpr, MODE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    element = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < all_rows) & (element < width * C)
    n, y = row // height, row % height
    x, c = (element // C).to(tl.int64), (element % C).to(tl.int64)
    source_y, source_x = _source(y - top, x_height, MODE), _source(x - left, x_width, MODE)
    inside = (source_y >= 0) & (source_y < x_height) & (source_x >= 0) & (source_x < x_width)
    source = x_ptr + n * xn + source_y * xh + source_x * xw + c * xc
    taken = tl.load(source, mask=mask & inside, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    if MODE == 0:
        taken = tl.where(inside, taken, value)
    tl.store(out_ptr + n * on + y * oh + x * ow + c * oc, taken.to(out_ptr.dtype.element_ty), mask=mask)
