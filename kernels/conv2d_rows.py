"""Implicit-GEMM convolution of three rows of taps that streams down a strip of pixels (sm_90): stride 1, half types.

An input row is loaded once for each column of taps and multiplied by all three rows of taps at once, for the three
output rows that it touches: a third of the loads that a tile needs. Each output row is summed in the order of the other
kernels (taps, then channel blocks), with pixels or channels on the rows of the matrix instruction.
"""

from __future__ import annotations

from tilefuse.kernels.stages import finish
from tilefuse.kernels.toolchain import jit, tl


@jit
def _conv2d_rows_kernel(
    x_desc, w_desc, bias_ptr, slopes_ptr, flag_ptr, r0_ptr, r1_ptr, out_ptr,
    rows, grid_h, grid_w, height, width,
    r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow, ay, by, cy, ax, bx, cx,
    slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
    CI: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr,
    KW: tl.constexpr, DW: tl.constexpr,
    BIAS: tl.constexpr, SLOPES: tl.constexpr, UP0: tl.constexpr, UP1: tl.constexpr, KIND: tl.constexpr,
    LAST: tl.constexpr, CLAMP: tl.constexpr, AFFINE: tl.constexpr, LEVELS: tl.constexpr, PACK: tl.constexpr,
    ROWS: tl.constexpr, TW: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SWAP: tl.constexpr,
    UPCAST: tl.constexpr, BF16_BITS: tl.constexpr,
):  # fmt: skip
    """A program makes `rows` rows of a strip; ROWS says how many in the interpreter, whose ranges must be constant."""
    strips = (grid_w + TW - 1) // TW
    bands = (grid_h + rows - 1) // rows
    program = tl.program_id(0)
    first_x = program % strips * TW
    first_y = program // strips % bands * rows
    n = program // (strips * bands)
    y0 = first_y + ay // by + cy
    x0 = first_x + ax // bx + cx
    column = tl.program_id(1) * BN
    BLOCKS_K: tl.constexpr = (CI + BK - 1) // BK
    STEPS: tl.constexpr = KW * BLOCKS_K
    TAPS: tl.constexpr = KW * CI
    acc0 = tl.zeros((BN, TW) if SWAP else (TW, BN), tl.float32)
    acc1 = acc0
    acc2 = acc0
    for k in range(0, ((ROWS if ROWS > 0 else rows) + 2) * STEPS):
        row = k // STEPS
        step = k % STEPS
        channel = step % BLOCKS_K * BK
        kx = step // BLOCKS_K
        a = x_desc.load([n, y0 + row, x0 + kx * DW, channel]).reshape(TW, BK)
        # The last row of taps ends the oldest output row, the first begins the newest; past CI `a` is zero.
        b0 = w_desc.load([column, 2 * TAPS + kx * CI + channel])  # [BN, BK]
        b1 = w_desc.load([column, TAPS + kx * CI + channel])
        b2 = w_desc.load([column, kx * CI + channel])
        if UPCAST:
            a, b0, b1, b2 = a.to(tl.float32), b0.to(tl.float32), b1.to(tl.float32), b2.to(tl.float32)
        if SWAP:
            acc0 = tl.dot(b0, a.T, acc0, input_precision="ieee")
            acc1 = tl.dot(b1, a.T, acc1, input_precision="ieee")
            acc2 = tl.dot(b2, a.T, acc2, input_precision="ieee")
        else:
            acc0 = tl.dot(a, b0.T, acc0, input_precision="ieee")
            acc1 = tl.dot(a, b1.T, acc1, input_precision="ieee")
            acc2 = tl.dot(a, b2.T, acc2, input_precision="ieee")
        if step == STEPS - 1:
            y = row - 2
            # Part by part, each in its warp's own registers: what the epilogue needs of all pixels would not fit there.
            pieces = (acc0,)
            if SWAP:
                pieces = (tl.permute(tl.trans(acc0).reshape(2, 2, 2, 2, TW // 16, BN), (0, 4, 5, 3, 2, 1)),)
                for _ in tl.static_range(3):
                    halves = ()
                    for j in tl.static_range(len(pieces)):
                        halves = halves + tl.split(pieces[j])
                    pieces = halves  # type: ignore[assignment]
            PART: tl.constexpr = TW // len(pieces)
            pixel = tl.arange(0, PART)
            if SWAP:
                # A part has neighbours of either half of the strip.
                pixel = pixel // (PART // 2) * (TW // 2) + pixel % (PART // 2)
            x = first_x + pixel
            for i in tl.static_range(len(pieces)):
                # Pointers move from part to part: positions of their own would all be kept in registers.
                shift = tl.cast(i * (PART // 2), tl.int64)
                inside = (y >= 0) & (y < rows) & (first_y + y < grid_h) & (x < grid_w - i * (PART // 2))
                finish(
                    pieces[i].reshape(PART, BN), n + x * 0, first_y + y + x * 0, x, inside, 0, column,
                    bias_ptr, slopes_ptr, flag_ptr, r0_ptr + shift * r0w, r1_ptr + shift * r1w, out_ptr + shift * ow,
                    height, width,
                    r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow,
                    slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
                    COLUMNS, OUTPUTS, 1, 1, False, BIAS, SLOPES, UP0, UP1, KIND, LAST, CLAMP, AFFINE,
                    LEVELS, w_desc.dtype, PACK, BF16_BITS,
                )  # fmt: skip
            acc0 = acc1
            acc1 = acc2
            acc2 = tl.zeros((BN, TW) if SWAP else (TW, BN), tl.float32)
