"""Pixel unshuffle: space to channels."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.operators import operator
from tilefuse.kernels.tensors import INTERPRETED, RowTile, bind, check_image, result, row_tile
from tilefuse.kernels.toolchain import jit, tl


def pixel_unshuffle(x: Tensor, factor: int, order: str = "crd", *, out: Tensor | None = None) -> Tensor:
    """Move space to channels: [N, H·r, W·r, C] -> [N, H, W, C·r²]; "crd" is torch's order, "dcr" ONNX's SpaceToDepth.

    Raises:
        BackendError: a type, device or shape the kernel doesn't take.
    """
    check_image("pixel_unshuffle", "x", x)
    n, h, w, c = x.shape
    if factor < 1 or h % factor or w % factor or order not in ("crd", "dcr"):
        raise BackendError(f"pixel_unshuffle: x is {h}x{w}; multiples of {factor} are accepted, in crd or dcr")
    out = result("pixel_unshuffle", x, (n, h // factor, w // factor, c * factor**2), out)
    if out.numel():
        _launch(x, out, factor, order == "crd")
    return out


def pixel_unshuffle_ref(x: Tensor, factor: int, order: str = "crd") -> Tensor:
    """Compute the same in plain torch."""
    if order == "crd":
        return F.pixel_unshuffle(x.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    split = x.reshape(n, h // factor, factor, w // factor, factor, c)
    return split.permute(0, 1, 3, 2, 4, 5).reshape(n, h // factor, w // factor, c * factor**2)


def pick_config(rows: int, columns: int, *, interpreted: bool = False) -> RowTile:
    """Choose the tile of the result that one program makes."""
    return row_tile(rows, columns, interpreted=interpreted)


def plan_launch(x: Tensor, out: Tensor, factor: int, channel_major: bool) -> Launch:
    """Choose the configuration and the arguments of a checked call; meta tensors do."""
    n, h, w, c = out.shape
    config = pick_config(n * h, w * c, interpreted=INTERPRETED)
    return bind("pixel_unshuffle", _pixel_unshuffle_kernel, config.grid(n * h, w * c), config,
        x, out, n * h, h, w, *x.stride(), *out.stride(), c, factor, channel_major, config.rows, config.columns,
    )  # fmt: skip


@operator("tilefuse::pixel_unshuffle", writes=("out",))
def _launch(x: Tensor, out: Tensor, factor: int, channel_major: bool) -> Iterable[Launch]:
    return (plan_launch(x, out, factor, channel_major),)


@jit
def _pixel_unshuffle_kernel(
    x_ptr, out_ptr, all_rows, height, width, xn, xh, xw, xc, on, oh, ow, oc,
    C: tl.constexpr, R: tl.constexpr, CHANNEL_MAJOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    element = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < all_rows) & (element < width * C)
    n, y = row // height, row % height
    x, c = (element // C).to(tl.int64), (element % C).to(tl.int64)
    if CHANNEL_MAJOR:
        phase, source_c = c % (R * R), c // (R * R)
    else:
        phase, source_c = c // (C // (R * R)), c % (C // (R * R))
    source = x_ptr + n * xn + (y * R + phase // R) * xh + (x * R + phase % R) * xw + source_c * xc
    value = tl.load(source, mask=mask)  # [ROWS, COLUMNS]
    tl.store(out_ptr + n * on + y * oh + x * ow + c * oc, value.to(out_ptr.dtype.element_ty), mask=mask)
