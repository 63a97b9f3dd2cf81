"""Implicit-GEMM convolution by pointers: any kernel, stride, dilation, groups, phases; and the depthwise case."""

from __future__ import annotations

from tilefuse.kernels.stages import activate, finish, narrow
from tilefuse.kernels.toolchain import jit, tl


@jit
def prepare(
    value, n, channel, inside, scale_ptr, shift_ptr, all_channels, input_scale, slope, dtype: tl.constexpr,
    INTEGER: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Run the prologue on loaded elements [M, K] of image n; what padding stands for stays zero. channel [1, K]."""
    if INTEGER or NORM or KIND != "none":
        value = value.to(tl.float32)
        if INTEGER:
            # As a float input of the layer's type would hold it.
            value = (value * input_scale).to(dtype).to(tl.float32)
        if NORM:
            place = n.to(tl.int64) * all_channels + channel  # [1, K]
            known = channel < all_channels
            value = value * tl.load(scale_ptr + place, mask=known, other=0.0)
            value += tl.load(shift_ptr + place, mask=known, other=0.0)
        value = activate(value, slope, KIND)
        value = narrow(tl.where(inside, value, 0.0), dtype)
    return value.to(dtype)


@jit
def positions(batch, area, ONE_IMAGE: tl.constexpr, BM: tl.constexpr):
    """Give a program's image, and of its pixels [BM] the image, the position in it and whether that exists.

    Pixels of all images follow one another, but in ONE_IMAGE, where each image begins a program: so a normalisation
    has one row of statistics, not one for each pixel.
    """
    if ONE_IMAGE:
        tiles = (area + BM - 1) // BM
        image = tl.program_id(0) // tiles
        pixel = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
        n = image + pixel * 0
        inside = pixel < area
    else:
        # Only the tile's origin needs 64 bits: within one image the launcher allows fewer than 2^31 pixels.
        start = tl.program_id(0).to(tl.int64) * BM
        image = (start // area).to(tl.int32)
        pixel = (start % area).to(tl.int32) + tl.arange(0, BM)
        n = image + pixel // area
        pixel = pixel % area
        inside = n < batch
    return image, n, pixel, inside


@jit
def _conv2d_kernel(
    x_ptr, w_ptr, scale_ptr, shift_ptr, bias_ptr, slopes_ptr, flag_ptr, r0_ptr, r1_ptr, out_ptr,
    batch, grid_h, grid_w, x_height, x_width, height, width,
    xn, xh, xw, r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow, ay, by, cy, ax, bx, cx,
    input_scale, input_slope, slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
    CI: tl.constexpr, COLUMNS: tl.constexpr, GROUPS: tl.constexpr, OUTPUTS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    PY: tl.constexpr, PX: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, SHUFFLED: tl.constexpr,
    INTEGER: tl.constexpr, NORM: tl.constexpr, INPUT_KIND: tl.constexpr,
    BIAS: tl.constexpr, SLOPES: tl.constexpr, UP0: tl.constexpr, UP1: tl.constexpr, KIND: tl.constexpr,
    LAST: tl.constexpr, CLAMP: tl.constexpr, AFFINE: tl.constexpr, LEVELS: tl.constexpr, PACK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLAT: tl.constexpr,
    UPCAST: tl.constexpr, BF16_BITS: tl.constexpr,
):  # fmt: skip
    BLOCKS_N: tl.constexpr = (COLUMNS + BN - 1) // BN
    group = tl.program_id(1) // BLOCKS_N
    block = tl.program_id(1) % BLOCKS_N
    phase = tl.program_id(2)
    py, px = phase // PX, phase % PX
    image, n, pixel, inside = positions(batch, grid_h * grid_w, NORM, BM)
    gy, gx = pixel // grid_w, pixel % grid_w
    y0 = gy * SH + (py + ay) // by + cy
    x0 = gx * SW + (px + ax) // bx + cx
    corner = n.to(tl.int64) * xn + y0.to(tl.int64) * xh + x0.to(tl.int64) * xw + group * CI
    column = block * BN + tl.arange(0, BN)
    K: tl.constexpr = KH * KW * CI
    w_rows = w_ptr + (phase * GROUPS + group).to(tl.int64) * COLUMNS * K + column * K
    dtype: tl.constexpr = tl.float32 if UPCAST else w_ptr.dtype.element_ty
    acc = tl.zeros((BM, BN), tl.float32)
    if FLAT:
        # Few channels: one K index runs over taps and channels together.
        for k in range(0, (K + BK - 1) // BK):
            entry = k * BK + tl.arange(0, BK)
            tap, channel = entry // CI, entry % CI
            ky, kx = tap // KW * DH, tap % KW * DW
            iy, ix = y0[:, None] + ky[None, :], x0[:, None] + kx[None, :]
            ok = inside[:, None] & (entry < K)[None, :] & (iy >= 0) & (iy < x_height) & (ix >= 0) & (ix < x_width)
            step = tl.cast(ky, tl.int64) * xh + tl.cast(kx, tl.int64) * xw + channel
            a = tl.load(x_ptr + corner[:, None] + step[None, :], mask=ok, other=0)  # [BM, BK]
            # Written as a sum where there is one group, it would take registers that sm_100 does not have.
            member = channel if GROUPS == 1 else group * CI + channel
            a = prepare(a, image, member[None, :], ok, scale_ptr, shift_ptr, CI * GROUPS, input_scale,
                        input_slope, dtype, INTEGER, NORM, INPUT_KIND)  # fmt: skip
            w_ok = (entry < K)[:, None] & (column < COLUMNS)[None, :]
            b = tl.load(w_rows[None, :] + entry[:, None], mask=w_ok, other=0.0)  # [BK, BN]
            acc = tl.dot(a, b.to(dtype), acc, input_precision="ieee")
    else:
        BLOCKS_K: tl.constexpr = (CI + BK - 1) // BK
        for k in range(0, KH * KW * BLOCKS_K):
            tap = k // BLOCKS_K
            channel = k % BLOCKS_K * BK + tl.arange(0, BK)
            ky, kx = tap // KW * DH, tap % KW * DW
            iy, ix = y0 + ky, x0 + kx
            ok = (inside & (iy >= 0) & (iy < x_height) & (ix >= 0) & (ix < x_width))[:, None]
            w_ok = (column < COLUMNS)[None, :]
            if CI % BK != 0:
                ok = ok & (channel < CI)[None, :]
                w_ok = w_ok & (channel < CI)[:, None]
            step = tl.cast(ky, tl.int64) * xh + tl.cast(kx, tl.int64) * xw
            a = tl.load(x_ptr + (corner + step)[:, None] + channel[None, :], mask=ok, other=0)  # [BM, BK]
            a = prepare(a, image, (group * CI + channel)[None, :], ok, scale_ptr, shift_ptr, CI * GROUPS,
                        input_scale, input_slope, dtype, INTEGER, NORM, INPUT_KIND)  # fmt: skip
            b = tl.load(w_rows[None, :] + (tap * CI + channel)[:, None], mask=w_ok, other=0.0)  # [BK, BN]
            acc = tl.dot(a, b.to(dtype), acc, input_precision="ieee")
    finish(
        acc, n, gy * PY + py, gx * PX + px, inside, group * COLUMNS, block * BN,
        bias_ptr, slopes_ptr, flag_ptr, r0_ptr, r1_ptr, out_ptr, height, width,
        r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow,
        slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
        COLUMNS, OUTPUTS, RY, RX, SHUFFLED, BIAS, SLOPES, UP0, UP1, KIND, LAST, CLAMP, AFFINE,
        LEVELS, w_ptr.dtype.element_ty, PACK, BF16_BITS,
    )  # fmt: skip


@jit
def _depthwise_kernel(
    x_ptr, w_ptr, scale_ptr, shift_ptr, bias_ptr, slopes_ptr, flag_ptr, r0_ptr, r1_ptr, out_ptr,
    batch, grid_h, grid_w, x_height, x_width, height, width,
    xn, xh, xw, r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow, ay, by, cy, ax, bx, cx,
    input_scale, input_slope, slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
    COLUMNS: tl.constexpr, GROUPS: tl.constexpr, OUTPUTS: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    PY: tl.constexpr, PX: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, SHUFFLED: tl.constexpr,
    INTEGER: tl.constexpr, NORM: tl.constexpr, INPUT_KIND: tl.constexpr,
    BIAS: tl.constexpr, SLOPES: tl.constexpr, UP0: tl.constexpr, UP1: tl.constexpr, KIND: tl.constexpr,
    LAST: tl.constexpr, CLAMP: tl.constexpr, AFFINE: tl.constexpr, LEVELS: tl.constexpr, PACK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, UPCAST: tl.constexpr, BF16_BITS: tl.constexpr,
):  # fmt: skip
    """One input channel a group: no matrix product, a sum over taps in a fixed order. COLUMNS are a group's outputs."""
    phase = tl.program_id(2)
    py, px = phase // PX, phase % PX
    image, n, pixel, inside = positions(batch, grid_h * grid_w, NORM, BM)
    gy, gx = pixel // grid_w, pixel % grid_w
    y0 = gy * SH + (py + ay) // by + cy
    x0 = gx * SW + (px + ax) // bx + cx
    corner = n.to(tl.int64) * xn + y0.to(tl.int64) * xh + x0.to(tl.int64) * xw
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    channel = (column // COLUMNS)[None, :]
    known = column < COLUMNS * GROUPS
    w_rows = w_ptr + phase.to(tl.int64) * (COLUMNS * GROUPS * KH * KW) + column * (KH * KW)
    acc = tl.zeros((BM, BN), tl.float32)
    for tap in range(0, KH * KW):
        ky, kx = tap // KW * DH, tap % KW * DW
        iy, ix = y0 + ky, x0 + kx
        ok = (inside & (iy >= 0) & (iy < x_height) & (ix >= 0) & (ix < x_width))[:, None] & known[None, :]
        step = tl.cast(ky, tl.int64) * xh + tl.cast(kx, tl.int64) * xw
        a = tl.load(x_ptr + (corner + step)[:, None] + channel, mask=ok, other=0)  # [BM, BN]
        # Rounded to the weight's type first, as the operands of a matrix product are.
        dtype: tl.constexpr = tl.float32 if UPCAST else w_ptr.dtype.element_ty
        a = prepare(a, image, channel, ok, scale_ptr, shift_ptr, GROUPS, input_scale, input_slope, dtype,
                    INTEGER, NORM, INPUT_KIND)  # fmt: skip
        b = tl.load(w_rows + tap, mask=known, other=0.0)
        acc += a.to(tl.float32) * b.to(tl.float32)[None, :]
    finish(
        acc, n, gy * PY + py, gx * PX + px, inside, 0, tl.program_id(1) * BN,
        bias_ptr, slopes_ptr, flag_ptr, r0_ptr, r1_ptr, out_ptr, height, width,
        r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow,
        slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
        COLUMNS * GROUPS, OUTPUTS, RY, RX, SHUFFLED, BIAS, SLOPES, UP0, UP1, KIND, LAST, CLAMP, AFFINE,
        LEVELS, w_ptr.dtype.element_ty, PACK, BF16_BITS,
    )  # fmt: skip
