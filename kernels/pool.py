"""Maximum and average of sliding windows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.operators import operator
from tilefuse.kernels.tensors import INTERPRETED, RowTile, bind, check_image, result, row_tile
from tilefuse.kernels.toolchain import jit, tl

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]


def pool(
    x: Tensor, kind: str, kernel: Pair, stride: Pair, padding: Sides = (0, 0, 0, 0), dilation: Pair = (1, 1),
    size: Pair | None = None, count_include_pad: bool = True, *, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Take the maximum ("max") or average ("avg") of windows of [N, H, W, C], padded by (top, left, bottom, right).

    `size` is the result's (height, width) where rounding up adds a window; windows may then reach past the padding. An
    average counts the pixels of the image, and those of the padding if `count_include_pad`, but never what lies past
    it. Sums in float32, row by row; NaN makes a maximum NaN, as in torch.

    Raises:
        BackendError: a type, device or shape the kernel doesn't take.
    """
    check_image("pool", "x", x)
    n, h, w, c = x.shape
    if kind not in ("max", "avg") or min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        raise BackendError(
            f"pool: {kind} of {kernel}, stride {stride}, dilation {dilation}, padding {padding}; max or avg of "
            "positive sizes is accepted"
        )
    made = size or _size((h, w), kernel, stride, padding, dilation)
    if min(made) < 1:
        raise BackendError(f"pool: x is {h}x{w}; at least one window of {kernel} with padding {padding} is accepted")
    out = result("pool", x, (n, made[0], made[1], c), out)
    if out.numel():
        _launch(x, out, kind == "max", [*kernel], [*stride], [*padding], [*dilation], count_include_pad)
    return out


def pool_ref(
    x: Tensor, kind: str, kernel: Pair, stride: Pair, padding: Sides = (0, 0, 0, 0), dilation: Pair = (1, 1),
    size: Pair | None = None, count_include_pad: bool = True,
) -> Tensor:  # fmt: skip
    """Compute the same in plain torch, from the list of every window's pixels."""
    planes = x.permute(0, 3, 1, 2).float()
    n, c, h, w = planes.shape
    top, left, bottom, right = padding
    made = size or _size((h, w), kernel, stride, padding, dilation)
    reach = [(m - 1) * s + d * (k - 1) + 1 for m, s, d, k in zip(made, stride, dilation, kernel, strict=True)]
    order = (left, reach[1] - left - w, top, reach[0] - top - h)
    fill = -torch.inf if kind == "max" else 0.0
    counted = torch.ones(1, 1, h, w)
    if count_include_pad:
        counted = F.pad(
            F.pad(counted, (left, right, top, bottom), value=1.0), (0, order[1] - right, 0, order[3] - bottom)
        )
    else:
        counted = F.pad(counted, order)

    def windows(t: Tensor) -> Tensor:
        return F.unfold(t.flatten(0, 1)[:, None], kernel, dilation, 0, stride)

    taken = windows(F.pad(planes, order, value=fill))
    made_flat = taken.amax(1) if kind == "max" else taken.sum(1) / windows(counted).sum(1)
    return made_flat.view(n, c, *made).permute(0, 2, 3, 1).to(x.dtype)


def _size(image: Pair, kernel: Pair, stride: Pair, padding: Sides, dilation: Pair) -> Pair:
    made = [
        (image[a] + padding[a] + padding[a + 2] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)
    ]
    return made[0], made[1]


def pick_config(rows: int, columns: int, *, interpreted: bool = False) -> RowTile:
    """Choose the tile of the result that one program makes."""
    return row_tile(rows, columns, interpreted=interpreted)


def plan_launch(
    x: Tensor, out: Tensor, maximum: bool, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], count_padding: bool,
) -> Launch:  # fmt: skip
    """Choose the configuration and the arguments of a checked call; meta tensors do."""
    n, h, w, c = out.shape
    config = pick_config(n * h, w * c, interpreted=INTERPRETED)
    return bind("pool", _pool_kernel, config.grid(n * h, w * c), config,
        x, out, n * h, h, w, x.shape[1], x.shape[2], *padding, *x.stride(), *out.stride(), c, maximum, *kernel, *stride,
        *dilation, count_padding, config.rows, config.columns,
    )  # fmt: skip


@operator("tilefuse::pool", writes=("out",))
def _launch(
    x: Tensor, out: Tensor, maximum: bool, kernel: list[int], stride: list[int], padding: list[int],
    dilation: list[int], count_padding: bool,
) -> Iterable[Launch]:  # fmt: skip
    return (plan_launch(x, out, maximum, kernel, stride, padding, dilation, count_padding),)


@jit
def _pool_kernel(
    x_ptr, out_ptr, all_rows, height, width, x_height, x_width, top, left, bottom, right,
    xn, xh, xw, xc, on, oh, ow, oc,
    C: tl.constexpr, MAXIMUM: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    DH: tl.constexpr, DW: tl.constexpr, COUNT_PADDING: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    element = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < all_rows) & (element < width * C)
    n, y = row // height, row % height
    x, c = (element // C).to(tl.int64), (element % C).to(tl.int64)
    taken = tl.full((ROWS, COLUMNS), float("-inf") if MAXIMUM else 0.0, tl.float32)
    count = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in range(KH * KW):
        source_y = y * SH - top + tap // KW * DH
        source_x = x * SW - left + tap % KW * DW
        inside = (source_y >= 0) & (source_y < x_height) & (source_x >= 0) & (source_x < x_width)
        source = x_ptr + n * xn + source_y * xh + source_x * xw + c * xc
        if MAXIMUM:
            value = tl.load(source, mask=mask & inside, other=float("-inf")).to(tl.float32)  # [ROWS, COLUMNS]
            taken = tl.maximum(taken, value, propagate_nan=tl.PropagateNan.ALL)
        else:
            taken += tl.load(source, mask=mask & inside, other=0.0).to(tl.float32)
            if COUNT_PADDING:
                inside = (source_y < x_height + bottom) & (source_x < x_width + right)
            count += tl.where(inside, 1.0, 0.0)
    if not MAXIMUM:
        taken = taken / count
    tl.store(out_ptr + n * on + y * oh + x * ow + c * oc, taken.to(out_ptr.dtype.element_ty), mask=mask)
