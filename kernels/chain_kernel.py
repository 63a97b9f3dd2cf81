"""The kernel of a chain: a tile of pixels passes through all layers, its intermediates in the program's own scratch."""

from __future__ import annotations

from tilefuse.kernels.stages import activate, finish, narrow
from tilefuse.kernels.toolchain import jit, tl


@jit
def _first_product(
    x_ptr, w_ptr, n, y0, x0, x_height, x_width, xn, xh, xw, input_scale, known, dtype: tl.constexpr,
    CI: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BK: tl.constexpr, STEPS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Multiply pixels of the image; y0, x0 [M] are the first tap's positions. Integers become floats on the way."""
    M: tl.constexpr = y0.shape[0]
    K: tl.constexpr = KH * KW * CI
    corner = n.to(tl.int64) * xn + y0.to(tl.int64) * xh + x0.to(tl.int64) * xw
    column = tl.arange(0, BN)
    acc = tl.zeros((M, BN), tl.float32)
    for k in range(0, STEPS):
        entry = k * BK + tl.arange(0, BK)
        tap, channel = entry // CI, entry % CI
        ky, kx = tap // KW * DH, tap % KW * DW
        iy, ix = y0[:, None] + ky[None, :], x0[:, None] + kx[None, :]
        ok = known[:, None] & (entry < K)[None, :] & (iy >= 0) & (iy < x_height) & (ix >= 0) & (ix < x_width)
        step = tl.cast(ky, tl.int64) * xh + tl.cast(kx, tl.int64) * xw + channel
        a = tl.load(x_ptr + corner[:, None] + step[None, :], mask=ok, other=0)  # [M, BK]
        if x_ptr.dtype.element_ty.is_int():
            a = a.to(tl.float32) * input_scale
        b = tl.load(w_ptr + column[None, :] * (BK * STEPS) + entry[:, None])  # [BK, BN]
        acc = tl.dot(a.to(dtype), b, acc, input_precision="ieee")
    return acc


@jit
def _next_product(
    source, w_ptr, first, CI: tl.constexpr, WIDTH: tl.constexpr, KW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BK: tl.constexpr, STEPS: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Multiply pixels of scratch, WIDTH a row; first [M] is the element of a position's first tap."""
    M: tl.constexpr = first.shape[0]
    column = tl.arange(0, BN)
    acc = tl.zeros((M, BN), tl.float32)
    for k in range(0, STEPS):
        # Whole taps: no step is masked, and every row of a step is a run of whole words, which a remainder would hide.
        tap = k * BK // CI
        channel = tl.arange(0, BK)
        if CI != BK:
            channel += tl.multiple_of(k * BK % CI, BK)
        step = (tap // KW * DH * WIDTH + tap % KW * DW) * CI
        a = tl.load(source + (first + step)[:, None] + channel[None, :])  # [M, BK]
        b = tl.load(w_ptr + column[None, :] * (BK * STEPS) + (k * BK + tl.arange(0, BK))[:, None])  # [BK, BN]
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@jit
def _keep(
    acc, target, vectors, pixel, known, y, x, x_height, x_width,
    KIND: tl.constexpr, NUMBER: tl.constexpr, CHANNELS: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Finish an inner layer's acc [M, N] and store it in scratch; y, x [M] are positions of the image."""
    N: tl.constexpr = acc.shape[1]
    column = tl.arange(0, N)
    acc += tl.load(vectors + column)[None, :]
    if KIND == "prelu":
        acc = tl.where(acc < 0, acc * tl.load(vectors + N + column)[None, :], acc)
    else:
        acc = activate(acc, NUMBER, KIND)
    # What lies outside of the image is the next layer's padding.
    inside = (y >= 0) & (y < x_height) & (x >= 0) & (x < x_width)
    acc = tl.where(inside[:, None], acc, 0.0)
    place = pixel[:, None] * CHANNELS + column[None, :]
    tl.store(target + place, narrow(acc, dtype), mask=known[:, None] & (column < CHANNELS)[None, :])


@jit
def _chain_kernel(
    x_ptr, w_ptr, vectors_ptr, bias_ptr, slopes_ptr, flag_ptr, r0_ptr, r1_ptr, scratch_ptr, out_ptr,
    tiles, tiles_y, tiles_x, grid_h, grid_w, x_height, x_width, height, width,
    xn, xh, xw, r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow,
    input_scale, slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
    ROWS: tl.constexpr, COLS: tl.constexpr, TOPS: tl.constexpr, LEFTS: tl.constexpr, CHANNELS: tl.constexpr,
    DEPTHS: tl.constexpr, STEPS: tl.constexpr, WEIGHTS: tl.constexpr, BUFFERS: tl.constexpr, BLOCKS_N: tl.constexpr,
    KHS: tl.constexpr, KWS: tl.constexpr, DHS: tl.constexpr, DWS: tl.constexpr, STARTS_Y: tl.constexpr,
    STARTS_X: tl.constexpr, KINDS: tl.constexpr, NUMBERS: tl.constexpr, BIASES: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, SCRATCH: tl.constexpr,
    COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, SHUFFLED: tl.constexpr,
    BIAS: tl.constexpr, SLOPES: tl.constexpr, UP0: tl.constexpr, UP1: tl.constexpr, KIND: tl.constexpr,
    LAST: tl.constexpr, CLAMP: tl.constexpr, AFFINE: tl.constexpr, LEVELS: tl.constexpr, PACK: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    LAYERS: tl.constexpr = len(ROWS)
    dtype: tl.constexpr = w_ptr.dtype.element_ty
    own = scratch_ptr + tl.program_id(0).to(tl.int64) * SCRATCH
    tile = tl.program_id(0)
    while tile < tiles:
        n = tile // (tiles_x * tiles_y)
        gy0, gx0 = tile // tiles_x % tiles_y * TH, tile % tiles_x * TW
        for i in tl.static_range(LAYERS):
            for block in range(0, (ROWS[i] * COLS[i] + BM - 1) // BM):
                pixel = block * BM + tl.arange(0, BM)
                known = pixel < ROWS[i] * COLS[i]
                # Positions past the region repeat its last one, whose result is not stored again.
                pixel = tl.minimum(pixel, ROWS[i] * COLS[i] - 1)
                ry, rx = pixel // COLS[i], pixel % COLS[i]
                if i == 0:
                    acc = _first_product(
                        x_ptr, w_ptr + WEIGHTS[i], n + ry * 0,
                        gy0 * SH + TOPS[i] + ry + STARTS_Y[i], gx0 * SW + LEFTS[i] + rx + STARTS_X[i],
                        x_height, x_width, xn, xh, xw, input_scale, known, dtype,
                        CHANNELS[i], KHS[i], KWS[i], DHS[i], DWS[i], DEPTHS[i], STEPS[i], BLOCKS_N[i],
                    )  # fmt: skip
                elif i < LAYERS - 1:
                    acc = _next_product(
                        own + BUFFERS[i - 1], w_ptr + WEIGHTS[i], (ry * COLS[i - 1] + rx) * CHANNELS[i],
                        CHANNELS[i], COLS[i - 1], KWS[i], DHS[i], DWS[i], DEPTHS[i], STEPS[i], BLOCKS_N[i],
                    )  # fmt: skip
                else:
                    acc = _next_product(
                        own + BUFFERS[i - 1], w_ptr + WEIGHTS[i], (ry * SH * COLS[i - 1] + rx * SW) * CHANNELS[i],
                        CHANNELS[i], COLS[i - 1], KWS[i], DHS[i], DWS[i], DEPTHS[i], STEPS[i], BLOCKS_N[i],
                    )  # fmt: skip
                if i < LAYERS - 1:
                    _keep(
                        acc, own + BUFFERS[i], vectors_ptr + BIASES[i], pixel, known,
                        gy0 * SH + TOPS[i] + ry, gx0 * SW + LEFTS[i] + rx, x_height, x_width,
                        tl.constexpr(KINDS[i]), NUMBERS[i], CHANNELS[i + 1], dtype,
                    )  # fmt: skip
                else:
                    gy, gx = gy0 + ry, gx0 + rx
                    finish(
                        acc, n + ry * 0, gy, gx, known & (gy < grid_h) & (gx < grid_w), 0, 0,
                        bias_ptr, slopes_ptr, flag_ptr, r0_ptr, r1_ptr, out_ptr, height, width,
                        r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow,
                        slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
                        COLUMNS, OUTPUTS, RY, RX, SHUFFLED, BIAS, SLOPES, UP0, UP1, KIND, LAST, CLAMP, AFFINE,
                        LEVELS, dtype, PACK, False,
                    )  # fmt: skip
            # The next layer reads what other threads of this program wrote, and writes over what they read.
            tl.debug_barrier()
        tile += tl.num_programs(0)
