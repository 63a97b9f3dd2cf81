"""Implicit-GEMM convolution of pixel tiles through TMA descriptors (sm_90 and newer): stride 1, one group, half types.

The hardware pads with zeros, so the loop has no masks and no divisions. The product runs in the order of the pointer
kernel (taps, then channel blocks), with pixels or channels on the rows of the matrix instruction.
"""

from __future__ import annotations

from tilefuse.kernels.stages import finish
from tilefuse.kernels.toolchain import jit, tl


@jit
def _conv2d_tma_kernel(
    x_desc, w_desc, bias_ptr, slopes_ptr, flag_ptr, r0_ptr, r1_ptr, out_ptr,
    grid_h, grid_w, height, width,
    r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow, ay, by, cy, ax, bx, cx,
    slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
    CI: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    PY: tl.constexpr, PX: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, SHUFFLED: tl.constexpr,
    BIAS: tl.constexpr, SLOPES: tl.constexpr, UP0: tl.constexpr, UP1: tl.constexpr, KIND: tl.constexpr,
    LAST: tl.constexpr, CLAMP: tl.constexpr, AFFINE: tl.constexpr, LEVELS: tl.constexpr, PACK: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SWAP: tl.constexpr,
    UPCAST: tl.constexpr, BF16_BITS: tl.constexpr,
):  # fmt: skip
    tiles_x = (grid_w + TW - 1) // TW
    tiles_y = (grid_h + TH - 1) // TH
    tile = tl.program_id(0)
    first_x = tile % tiles_x * TW
    first_y = tile // tiles_x % tiles_y * TH
    n = tile // (tiles_x * tiles_y)
    phase = tl.program_id(2)
    py, px = phase // PX, phase % PX
    y0 = first_y + (py + ay) // by + cy
    x0 = first_x + (px + ax) // bx + cx
    column = tl.program_id(1) * BN
    w_row = phase * COLUMNS + column
    BLOCKS_K: tl.constexpr = (CI + BK - 1) // BK
    M: tl.constexpr = TH * TW
    acc = tl.zeros((BN, M) if SWAP else (M, BN), tl.float32)
    for k in range(0, KH * KW * BLOCKS_K):
        tap = k // BLOCKS_K
        channel = k % BLOCKS_K * BK
        a = x_desc.load([n, y0 + tap // KW * DH, x0 + tap % KW * DW, channel]).reshape(M, BK)  # [M, BK]
        b = w_desc.load([w_row, tap * CI + channel])  # [BN, BK]; past CI `a` is zero
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        if SWAP:
            acc = tl.dot(b, a.T, acc, input_precision="ieee")
        else:
            acc = tl.dot(a, b.T, acc, input_precision="ieee")
    if SWAP:
        acc = tl.trans(acc)
    row = tl.arange(0, M)
    y, x = first_y + row // TW, first_x + row % TW
    finish(
        acc, n + row * 0, y * PY + py, x * PX + px, (y < grid_h) & (x < grid_w), 0, column,
        bias_ptr, slopes_ptr, flag_ptr, r0_ptr, r1_ptr, out_ptr, height, width,
        r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow,
        slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
        COLUMNS, OUTPUTS, RY, RX, SHUFFLED, BIAS, SLOPES, UP0, UP1, KIND, LAST, CLAMP, AFFINE,
        LEVELS, w_desc.dtype, PACK, BF16_BITS,
    )  # fmt: skip
