"""Pixel shuffle: channels to space."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.operators import operator
from tilefuse.kernels.tensors import INTERPRETED, RowTile, bind, check_image, result, row_tile
from tilefuse.kernels.toolchain import jit, tl


def pixel_shuffle(x: Tensor, factor: int, order: str = "crd", *, out: Tensor | None = None) -> Tensor:
    """Move channels to space: [N, H, W, C·r²] -> [N, H·r, W·r, C]; "crd" is torch's order, "dcr" ONNX's default.

    Raises:
        BackendError: a type, device or shape the kernel doesn't take.
    """
    check_image("pixel_shuffle", "x", x)
    n, h, w, c = x.shape
    if factor < 1 or c % factor**2 or order not in ("crd", "dcr"):
        raise BackendError(f"pixel_shuffle: {c} channels by {factor} in {order}; a multiple of {factor**2} is accepted")
    out = result("pixel_shuffle", x, (n, h * factor, w * factor, c // factor**2), out)
    if out.numel():
        _launch(x, out, factor, order == "crd")
    return out


def pixel_shuffle_ref(x: Tensor, factor: int, order: str = "crd") -> Tensor:
    """Compute the same in plain torch."""
    if order == "crd":
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    split = x.reshape(n, h, w, factor, factor, c // factor**2)
    return split.permute(0, 1, 3, 2, 4, 5).reshape(n, h * factor, w * factor, c // factor**2)


def pick_config(rows: int, columns: int, *, interpreted: bool = False) -> RowTile:
    """Choose the tile of the result that one program makes."""
    return row_tile(rows, columns, interpreted=interpreted)


def plan_launch(x: Tensor, out: Tensor, factor: int, channel_major: bool) -> Launch:
    """Choose the configuration and the arguments of a checked call; meta tensors do."""
    n, h, w, c = out.shape
    config = pick_config(n * h, w * c, interpreted=INTERPRETED)
    return bind("pixel_shuffle", _pixel_shuffle_kernel, config.grid(n * h, w * c), config,
        x, out, n * h, h, w, *x.stride(), *out.stride(), c, factor, channel_major, config.rows, config.columns,
    )  # fmt: skip


@operator("tilefuse::pixel_shuffle", writes=("out",))
def _launch(x: Tensor, out: Tensor, factor: int, channel_major: bool) -> Iterable[Launch]:
    return (plan_launch(x, out, factor, channel_major),)


@jit
def _pixel_shuffle_kernel(
    x_ptr, out_ptr, all_rows, height, width, xn, xh, xw, xc, on, oh, ow, oc,
    C: tl.constexpr, R: tl.constexpr, CHANNEL_MAJOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    element = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < all_rows) & (element < width * C)
    n, y = row // height, row % height
    x, c = (element // C).to(tl.int64), (element % C).to(tl.int64)
    phase = y % R * R + x % R
    if CHANNEL_MAJOR:
        source_c = c * R * R + phase
    else:
        source_c = phase * C + c
    source = x_ptr + n * xn + y // R * xh + x // R * xw + source_c * xc
    value = tl.load(source, mask=mask)  # [ROWS, COLUMNS]
    tl.store(out_ptr + n * on + y * oh + x * ow + c * oc, value.to(out_ptr.dtype.element_ty), mask=mask)
