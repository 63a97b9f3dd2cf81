"""Images and tensors into the engine's layout: any strides, integers or floats, to NHWC floats."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tilefuse.kernels.launch import Launch
from tilefuse.kernels.operators import operator
from tilefuse.kernels.stages import narrow
from tilefuse.kernels.tensors import INTERPRETED, RowTile, bind, check_image, result, row_tile
from tilefuse.kernels.toolchain import FLOATS, jit, narrowed, tl

PIXELS = (torch.uint8, torch.uint16, *FLOATS)


def image_load(
    x: Tensor, scale: float = 1.0, dtype: torch.dtype = torch.float32, *, out: Tensor | None = None
) -> Tensor:
    """Convert [N, H, W, C] pixels of any strides to floats and multiply them by `scale` (1/255 for uint8, say).

    A view of a tensor in another layout is converted as it is read, so no layout is copied before. `dtype` is that of
    a new result; `out` has its own.

    Raises:
        BackendError: a type, device or shape the kernel doesn't take.
    """
    check_image("image_load", "x", x, PIXELS)
    n, h, w, c = x.shape
    out = result("image_load", x, (n, h, w, c), out, dtype)
    if out.numel():
        _launch(x, out, scale)
    return out


def image_load_ref(x: Tensor, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute the same in plain torch."""
    return narrowed(x.to(torch.float32) * scale, dtype)


def pick_config(rows: int, columns: int, *, interpreted: bool = False) -> RowTile:
    """Choose the tile of the result that one program makes."""
    return row_tile(rows, columns, interpreted=interpreted)


def plan_launch(x: Tensor, out: Tensor, scale: float) -> Launch:
    """Choose the configuration and the arguments of a checked call; meta tensors do."""
    n, h, w, c = out.shape
    config = pick_config(n * h, w * c, interpreted=INTERPRETED)
    return bind("image_load", _image_load_kernel, config.grid(n * h, w * c), config,
        x, out, n * h, h, w, scale, *x.stride(), *out.stride(), c, config.rows, config.columns,
    )  # fmt: skip


@operator("tilefuse::image_load", writes=("out",))
def _launch(x: Tensor, out: Tensor, scale: float) -> Iterable[Launch]:
    return (plan_launch(x, out, scale),)


@jit
def _image_load_kernel(
    x_ptr, out_ptr, all_rows, height, width, scale, xn, xh, xw, xc, on, oh, ow, oc,
    C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    element = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    mask = (row < all_rows) & (element < width * C)
    n, y = row // height, row % height
    x, c = (element // C).to(tl.int64), (element % C).to(tl.int64)
    value = tl.load(x_ptr + n * xn + y * xh + x * xw + c * xc, mask=mask).to(tl.float32) * scale  # [ROWS, COLUMNS]
    tl.store(out_ptr + n * on + y * oh + x * ow + c * oc, narrow(value, out_ptr.dtype.element_ty), mask=mask)
