"""The pieces that every multiplying kernel shares, as functions inside the kernels: activations, and the epilogue."""

from __future__ import annotations

from tilefuse.kernels.toolchain import jit, tl


@jit
def activate(value, slope, KIND: tl.constexpr):
    """Apply an activation without weights. NaN stays NaN, so that an overflow is seen behind it."""
    if KIND == "relu":
        value = tl.where(value < 0, 0.0, value)
    elif KIND == "leaky_relu":
        value = tl.where(value < 0, value * slope, value)
    elif KIND == "elu":
        value = tl.where(value < 0, slope * (tl.exp(value) - 1), value)
    elif KIND == "gelu":
        value = 0.5 * value * (1 + tl.erf(value * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        value = value * tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    elif KIND == "silu":
        value = value * tl.sigmoid(value)
    elif KIND == "hardswish":
        value = value * tl.minimum(tl.maximum(value + 3, 0.0), 6.0) * (1 / 6)
    elif KIND == "hardsigmoid":
        value = tl.minimum(tl.maximum(value + 3, 0.0), 6.0) * (1 / 6) + value * 0
    elif KIND == "tanh":
        value = 2 * tl.sigmoid(2 * value) - 1
    elif KIND == "sigmoid":
        value = tl.sigmoid(value)
    elif KIND == "softplus":
        value = tl.where(value > 20, value, tl.log(1 + tl.exp(tl.minimum(value, 20.0))))
    elif KIND == "mish":
        # tanh(log(1 + e)) = (e² + 2e) / (e² + 2e + 2) with e = exp(value).
        power = tl.exp(tl.minimum(value, 20.0))
        ratio = power * (power + 2) / (power * (power + 2) + 2)
        value = tl.where(value > 20, value, value * ratio)
    return value


@jit
def narrow(value, dtype: tl.constexpr):
    """Convert float32; what float16 can't hold becomes NaN, which no activation, limit or product hides again.

    An infinity would be: a limit behind it makes it 1, a sigmoid 0 or 1, and nobody saw the overflow.
    """
    made = value.to(dtype)
    if dtype == tl.float16:
        made = made * 0.0 + made
    return made


@jit
def residual(
    value, tensor, n, y, x, channel, inside, value_scale, scale, tn, th, tw,
    UPSAMPLE: tl.constexpr,
):  # fmt: skip
    """Add one scaled residual to [M, N]; zero for UPSAMPLE means there is none."""
    if UPSAMPLE > 0:
        place = n.to(tl.int64)[:, None] * tn + (y // UPSAMPLE).to(tl.int64) * th + (x // UPSAMPLE).to(tl.int64) * tw
        other = tl.load(tensor + place + channel, mask=inside, other=0.0)  # [M, N]
        value = value * value_scale + other.to(tl.float32) * scale
    return value


@jit
def position(y, x, column, OUTPUTS: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr):
    """Tell where columns of grid positions are written: rows and columns of the image, and channels."""
    if RY * RX == 1:
        rows, columns, channel = y[:, None], x[:, None], column[None, :]
    else:
        cell = column // OUTPUTS
        rows = y[:, None] * RY + (cell // RX)[None, :]
        columns = x[:, None] * RX + (cell % RX)[None, :]
        channel = (column % OUTPUTS)[None, :]
    return rows, columns, channel


@jit
def bfloat16_bits(value):
    """Round float32 to bfloat16, half to even, where a conversion can't: in the low 16 bits of an int32."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(value == value, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0) & 0xFFFF


@jit
def finish(
    acc, n, y, x, inside, base, first,
    bias_ptr, slopes_ptr, flag_ptr, r0_ptr, r1_ptr, out_ptr, height, width,
    r0n, r0h, r0w, r1n, r1h, r1w, on, oh, ow,
    slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift,
    COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr, RY: tl.constexpr, RX: tl.constexpr, SHUFFLED: tl.constexpr,
    BIAS: tl.constexpr, SLOPES: tl.constexpr, UP0: tl.constexpr, UP1: tl.constexpr, KIND: tl.constexpr,
    LAST: tl.constexpr, CLAMP: tl.constexpr, AFFINE: tl.constexpr, LEVELS: tl.constexpr, dtype: tl.constexpr,
    PACK: tl.constexpr, BF16_BITS: tl.constexpr,
):  # fmt: skip
    """Run the epilogue on acc [M, N] float32 and store it.

    n, y, x, inside: [M], grid positions (phases included) and whether they exist. first: the tile's first column among
    the COLUMNS of its group, which begin at column `base`. PACK neighbours are stored as one word.
    """
    M: tl.constexpr = acc.shape[0]
    N: tl.constexpr = acc.shape[1]
    column = base + first + tl.arange(0, N)
    known = first + tl.arange(0, N) < COLUMNS
    rows, columns, channel = position(y, x, column, OUTPUTS, RY, RX)
    ok = inside[:, None] & known[None, :] & (rows < height) & (columns < width)
    # A pixel shuffle's bias has one number a column, in torch's order.
    entry = column
    if RY * RX > 1:
        entry = column % OUTPUTS
        if SHUFFLED:
            entry = entry * (RY * RX) + column // OUTPUTS
    value = acc
    if BIAS:
        value += tl.load(bias_ptr + entry, mask=known, other=0.0).to(tl.float32)[None, :]
    if KIND == "prelu":
        if SLOPES > 1:
            slopes = tl.load(slopes_ptr + entry, mask=known, other=0.0).to(tl.float32)[None, :]
        else:
            slopes = tl.load(slopes_ptr).to(tl.float32)
        if not LAST:
            value = tl.where(value < 0, value * slopes, value)
    elif not LAST:
        value = activate(value, slope, KIND)
    value = residual(value, r0_ptr, n, rows, columns, channel, ok, value0, scale0, r0n, r0h, r0w, UP0)
    value = residual(value, r1_ptr, n, rows, columns, channel, ok, value1, scale1, r1n, r1h, r1w, UP1)
    if LAST:
        if KIND == "prelu":
            value = tl.where(value < 0, value * slopes, value)
        else:
            value = activate(value, slope, KIND)
    if CLAMP:
        value = tl.where(value < low, low, tl.where(value > high, high, value))
    if AFFINE:
        value = value * out_scale + out_shift
    KIND_OUT: tl.constexpr = out_ptr.dtype.element_ty
    if LEVELS > 0:
        # Through the type that a result would be stored in, so that the levels are those `image_store` makes of it.
        if BF16_BITS:
            value = (bfloat16_bits(value) << 16).to(tl.float32, bitcast=True)
        else:
            value = narrow(value, dtype).to(tl.float32)
        if LEVELS == 2:
            # Each lane tells by itself: a reduction, or the mask of the store with its addresses, would hold half as
            # many registers again. So the launcher takes a flag only where grid positions lie in the image as wholes.
            bad = known[None, :] & inside[:, None] & ~(tl.abs(value) < float("inf"))
            tl.store(flag_ptr + tl.zeros((M, N), tl.int32), 1, mask=bad)
        value = tl.where(value == value, value, 0.0) * (255.0 if KIND_OUT == tl.uint8 else 65535.0)
    if KIND_OUT == tl.uint8 or KIND_OUT == tl.uint16:
        top: tl.constexpr = 255.0 if KIND_OUT == tl.uint8 else 65535.0
        value = tl.minimum(tl.maximum(value, 0.0), top)
        # Adding 1.5 · 2²³ leaves no bits below one: rounds half to even, which a plain conversion does not.
        bits = ((value + 12582912.0) - 12582912.0).to(tl.int32)
    elif PACK > 1 or BF16_BITS:
        if BF16_BITS:
            bits = bfloat16_bits(value)
        else:
            bits = narrow(value, KIND_OUT).to(tl.uint16, bitcast=True).to(tl.int32)
    if PACK > 1:
        WIDTH: tl.constexpr = out_ptr.dtype.element_ty.primitive_bitwidth
        low_half, high_half = tl.split(tl.reshape(bits, [M, N // 2, 2]))
        bits = low_half | (high_half << WIDTH)  # [M, N / 2]
        if PACK == 4:
            low_half, high_half = tl.split(tl.reshape(bits, [M, N // 4, 2]))
            bits = low_half | (high_half << 16)  # [M, N / 4]
        local = first + tl.arange(0, N // PACK) * PACK
        rows, columns, channel = position(y, x, base + local, OUTPUTS, RY, RX)
        ok = inside[:, None] & (local < COLUMNS)[None, :] & (rows < height) & (columns < width)
        place = n.to(tl.int64)[:, None] * on + rows.to(tl.int64) * oh + columns.to(tl.int64) * ow + channel
        if PACK * WIDTH == 32:
            tl.store(out_ptr.to(tl.pointer_type(tl.int32)) + place // PACK, bits, mask=ok)
        else:
            tl.store(out_ptr.to(tl.pointer_type(tl.int16)) + place // PACK, bits.to(tl.int16), mask=ok)
    else:
        place = n.to(tl.int64)[:, None] * on + rows.to(tl.int64) * oh + columns.to(tl.int64) * ow + channel
        if KIND_OUT == tl.uint8 or KIND_OUT == tl.uint16:
            tl.store(out_ptr + place, bits.to(KIND_OUT), mask=ok)
        elif BF16_BITS:
            tl.store(out_ptr.to(tl.pointer_type(tl.uint16)) + place, bits.to(tl.uint16), mask=ok)
        else:
            tl.store(out_ptr + place, narrow(value, KIND_OUT), mask=ok)
