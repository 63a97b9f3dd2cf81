"""Floats out of the engine's layout: rounded, clipped integer pixels, packed into 32-bit words."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.aliasing import has_memory, require_apart
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.operators import operator
from tilefuse.kernels.tensors import INTERPRETED, RowTile, bind, check_image, check_tensor, power_of_two
from tilefuse.kernels.toolchain import jit, tl

WORD_BYTES = 4
FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}


def empty_pixels(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate integer pixels whose last word may be written whole."""
    words = -(-shape[0] * shape[1] * shape[2] * shape[3] * dtype.itemsize // WORD_BYTES)
    flat = torch.empty(words, dtype=torch.int32, device=device).view(dtype)
    return flat.as_strided(shape, (shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1))


def image_store(
    x: Tensor,
    dtype: torch.dtype = torch.uint8,
    low: float = 0.0,
    high: float = 1.0,
    *,
    out: Tensor | None = None,
    flag: Tensor | None = None,
) -> Tensor:
    """Convert [N, H, W, C] floats, `low` black and `high` white, to integers rounded to even and clipped.

    `out` is dense, starts at a whole word and has room for whole words, as from `empty_pixels`. `flag` int32 [1]
    becomes 1 if a value is not finite, and is left alone otherwise.

    Raises:
        BackendError: a type, device or shape the kernel doesn't take.
    """
    check_image("image_store", "x", x)
    if dtype not in FULL_SCALE:
        raise BackendError(f"image_store: {dtype} pixels; uint8 and uint16 are accepted")
    if not math.isfinite(low) or not math.isfinite(high) or low == high:
        raise BackendError(f"image_store: low is {low} and high {high}; two finite numbers that differ are accepted")
    n, h, w, c = x.shape
    if out is None:
        out = empty_pixels((n, h, w, c), dtype, x.device)
    else:
        _check_out(out, x, dtype)
    if flag is not None:
        check_tensor("image_store", "flag", flag, (torch.int32,), like=x)
        if tuple(flag.shape) != (1,):
            raise BackendError(f"image_store: flag has the shape {list(flag.shape)}; [1] is accepted")
    if out.numel():
        _launch(x, out, flag, low, FULL_SCALE[dtype] / (high - low))
    return out


def _check_out(out: Tensor, x: Tensor, dtype: torch.dtype) -> None:
    check_image("image_store", "out", out, (dtype,), like=x)
    whole, shape = True, list(x.shape)
    if has_memory(out):
        room = out.untyped_storage().nbytes() - out.storage_offset() * out.element_size()
        whole = room >= -(-out.numel() * out.element_size() // WORD_BYTES) * WORD_BYTES
        whole = whole and out.data_ptr() % WORD_BYTES == 0
    if list(out.shape) != shape or not out.is_contiguous() or not whole:
        raise BackendError(
            f"image_store: out is {list(out.shape)}, strides {list(out.stride())}; a dense {shape} at a whole "
            "word with room for whole words is accepted, as empty_pixels gives it"
        )
    require_apart(out, x, "image_store: out", "x")


def image_store_ref(x: Tensor, dtype: torch.dtype = torch.uint8, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Compute the same in plain torch."""
    full = FULL_SCALE[dtype]
    return ((x.float() - low) * (full / (high - low))).round_().clamp_(0, full).to(torch.int32).to(dtype)


def pick_config(words: int, *, interpreted: bool = False) -> RowTile:
    """Choose how many words one program packs."""
    return RowTile(1, min(power_of_two(max(words, 1)), 1 << 13 if interpreted else 256))


def plan_launch(x: Tensor, out: Tensor, flag: Tensor | None, low: float, factor: float) -> Launch:
    """Choose the configuration and the arguments of a checked call; meta tensors do."""
    _, h, w, c = out.shape
    per_word = WORD_BYTES // out.element_size()
    words = -(-out.numel() // per_word)
    config = pick_config(words, interpreted=INTERPRETED)
    packed = out.as_strided((words * per_word,), (1,)).view(torch.int32)
    return bind("image_store", _image_store_kernel, (-(-words // config.columns),), config,
        x,
        packed,
        packed if flag is None else flag,
        out.numel(),
        h,
        w,
        low,
        factor,
        *x.stride(),
        c,
        per_word,
        flag is not None,
        config.columns,
    )  # fmt: skip


@operator("tilefuse::image_store", writes=("out", "flag"))
def _launch(x: Tensor, out: Tensor, flag: Tensor | None, low: float, factor: float) -> Iterable[Launch]:
    return (plan_launch(x, out, flag, low, factor),)


@jit
def _image_store_kernel(
    x_ptr, out_ptr, flag_ptr, elements, height, width, low, factor, xn, xh, xw, xc,
    C: tl.constexpr, PER_WORD: tl.constexpr, FLAGGED: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    full: tl.constexpr = 255.0 if PER_WORD == 4 else 65535.0
    packed = tl.zeros((WORDS,), tl.int32)
    bad = tl.zeros((WORDS,), tl.int32)
    for part in tl.static_range(PER_WORD):
        element = word * PER_WORD + part
        mask = element < elements
        pixel, c = element // C, element % C
        row, x = pixel // width, pixel % width
        n, y = row // height, row % height
        value = tl.load(x_ptr + n * xn + y * xh + x * xw + c * xc, mask=mask, other=0.0).to(tl.float32)  # [WORDS]
        if FLAGGED:
            bad = bad | tl.where(tl.abs(value) < float("inf"), 0, 1)
        value = tl.where(value == value, value, low)
        value = tl.minimum(tl.maximum((value - low) * factor, 0.0), full)
        # 1.5 * 2**23: adding it leaves no fraction bits, so the sum is rounded to even as torch and numpy round.
        level = ((value + 12582912.0) - 12582912.0).to(tl.int32)
        packed = packed | (level << (part * (32 // PER_WORD)))
    if FLAGGED:
        any_bad = tl.max(bad, 0)
        tl.store(flag_ptr, any_bad, mask=any_bad > 0)
    tl.store(out_ptr + word, packed, mask=word * PER_WORD < elements)
