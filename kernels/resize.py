"""Resizing by tables: each output row and column reads a few input rows and columns with given weights.

The tables hold what a resize is (mode, coordinate convention, kernel), computed once from exact fractions, so nearest
never picks a neighbour by rounding and an interpolation weight never drifts with the position.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.operators import operator
from tilefuse.kernels.stages import narrow
from tilefuse.kernels.tensors import INTERPRETED, RowTile, bind, check_image, check_tensor, result, row_tile
from tilefuse.kernels.toolchain import jit, narrowed, tl


def resize(
    x: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Interpolate [N, H, W, C] -> [N, H', W', C].

    `rows` int32 [taps, H'] are the input rows, from 0 to below H, that an output row reads and `row_weights` float32
    [taps, H'] their weights; `columns` and `column_weights` [taps, W'] likewise. One tap is nearest, two linear, four
    cubic. Sums columns, then rows, in float32.

    Raises:
        BackendError: a type, device or shape the kernel doesn't take.
    """
    check_image("resize", "x", x)
    for name, table, dtype in (
        ("rows", rows, torch.int32),
        ("row_weights", row_weights, torch.float32),
        ("columns", columns, torch.int32),
        ("column_weights", column_weights, torch.float32),
    ):
        check_tensor("resize", name, table, (dtype,), like=x)
        if table.ndim != 2 or not table.is_contiguous():
            raise BackendError(f"resize: {name} has the shape {list(table.shape)}; a dense [taps, size] is accepted")
    if rows.shape != row_weights.shape or columns.shape != column_weights.shape or rows.shape[0] != columns.shape[0]:
        raise BackendError(
            f"resize: tables of {list(rows.shape)}, {list(row_weights.shape)}, {list(columns.shape)} and "
            f"{list(column_weights.shape)}; as many taps and sizes as weights are accepted"
        )
    n, h, w, c = x.shape
    if n and min(h, w) < 1:
        raise BackendError(f"resize: x is {h}x{w}; at least one pixel is accepted")
    out = result("resize", x, (n, rows.shape[1], columns.shape[1], c), out)
    if out.numel():
        _launch(x, rows, row_weights, columns, column_weights, out)
    return out


def resize_ref(x: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor) -> Tensor:
    """Compute the same in plain torch."""
    source = x.float()
    wide = sum(source[:, :, i] * w[:, None] for i, w in zip(columns.long(), column_weights, strict=True))
    made = sum(wide[:, i] * w[:, None, None] for i, w in zip(rows.long(), row_weights, strict=True))
    return narrowed(torch.as_tensor(made), x.dtype)


def pick_config(rows: int, columns: int, taps: int, *, interpreted: bool = False) -> RowTile:
    """Choose the tile of the result that one program makes; many taps at once need registers for their addresses."""
    tile = row_tile(rows, columns, interpreted=interpreted)
    return tile if taps == 1 or interpreted else replace(tile, columns=min(tile.columns, 256), num_warps=2)


def plan_launch(
    x: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor, out: Tensor
) -> Launch:
    """Choose the configuration and the arguments of a checked call; meta tensors do."""
    n, h, w, c = out.shape
    config = pick_config(n * h, w * c, rows.shape[0], interpreted=INTERPRETED)
    return bind("resize", _resize_kernel, config.grid(n * h, w * c), config,
        x, rows, row_weights, columns, column_weights, out, n * h, h, w, *x.stride(), *out.stride(),
        c, rows.shape[0], config.rows, config.columns,
    )  # fmt: skip


@operator("tilefuse::resize", writes=("out",))
def _launch(
    x: Tensor, rows: Tensor, row_weights: Tensor, columns: Tensor, column_weights: Tensor, out: Tensor
) -> Iterable[Launch]:
    return (plan_launch(x, rows, row_weights, columns, column_weights, out),)


@jit
def _resize_kernel(
    x_ptr, rows_ptr, row_weights_ptr, columns_ptr, column_weights_ptr, out_ptr, all_rows, height, width,
    xn, xh, xw, xc, on, oh, ow, oc,
    C: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    element = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < all_rows) & (element < width * C)
    n, y = row // height, row % height
    x, c = element // C, (element % C).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap_y in tl.static_range(TAPS):
        source_y = tl.load(rows_ptr + tap_y * height + y).to(tl.int64)  # [ROWS, 1]
        line = tl.zeros((ROWS, COLUMNS), tl.float32)
        for tap_x in tl.static_range(TAPS):
            source_x = tl.load(columns_ptr + tap_x * width + x, mask=element < width * C, other=0).to(tl.int64)
            value = tl.load(x_ptr + n * xn + source_y * xh + source_x * xw + c * xc, mask=mask, other=0.0)
            if TAPS == 1:
                line = value.to(tl.float32)
            else:
                weight = tl.load(column_weights_ptr + tap_x * width + x, mask=element < width * C, other=0.0)
                line += value.to(tl.float32) * weight  # [ROWS, COLUMNS]
        if TAPS == 1:
            total = line
        else:
            total += line * tl.load(row_weights_ptr + tap_y * height + y)
    made = narrow(total, out_ptr.dtype.element_ty)
    tl.store(out_ptr + n * on + y * oh + x.to(tl.int64) * ow + c * oc, made, mask=mask)
