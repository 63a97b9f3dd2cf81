"""3x3 convolution with resident weights and a ring of input rows in shared memory (Hopper, Gluon).

A program streams down a strip of STRIP pixels. Its weights stay in shared memory, and each input row is loaded once for
each of the three columns of taps, shifted, because an operand of wgmma begins at a whole swizzle block: the three rows
of taps then read it where it lies. An input row comes from the L2 three times instead of nine.

It can't run in Triton's interpreter and has not been run on a GPU yet; `ring_config.TARGETS` says where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.convolve import check_call, pack_geometry, unpack_geometry
from tilefuse.kernels.epilogue import Epilogue, Kind, Prologue
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.layer import Layer
from tilefuse.kernels.operators import operator
from tilefuse.kernels.ring_config import KINDS, pick_config, ring_missing, takes_ring
from tilefuse.kernels.toolchain import Kernel, descriptor_strides, require, require_runnable, target

try:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia.hopper import (
        fence_async_shared,
        mbarrier,
        tma,
        warpgroup_mma,
        warpgroup_mma_wait,
    )
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    # The copies were renamed in Triton 3.8.
    copy_in = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
    copy_out = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
except (ImportError, AttributeError):
    gluon = gl = None


def jit(function: Callable[..., Any]) -> Kernel:
    """Decorate a kernel with `gluon.jit`; without Gluon keep the plain function, which no launcher ever calls."""
    return function if gluon is None else gluon.jit(function)


def run_ring(x: Tensor, layer: Layer, *, epilogue: Epilogue | None = None, out: Tensor | None = None) -> Tensor:
    """Run a packed 3x3 layer on `x` [N, H, W, C] as `run_layer` does, by this kernel; `conv2d_ref` is its reference.

    Raises:
        BackendError: before any launch: a layer, epilogue, type, layout or device it doesn't take.
    """
    epilogue = epilogue or Epilogue()
    out = check_call(x, layer, Prologue(), epilogue, out)
    place = out[..., epilogue.channel_offset : epilogue.channel_offset + layer.outputs]
    if place.numel() == 0:
        return place
    require_runnable(x)
    missing = ring_missing(target(x.device))
    if missing is not None:
        raise BackendError(f"the ring kernel can't run on tensor x: {missing}")
    _run(
        place, x, layer.weight, epilogue.bias, epilogue.slopes, pack_geometry(layer), epilogue.slope,
        epilogue.activation,
    )  # fmt: skip
    return place


def plan_launch(x: Tensor, layer: Layer, epilogue: Epilogue, out: Tensor) -> Launch:
    """Choose grid and arguments for a checked call; meta tensors do.

    Raises:
        BackendError: a layer, an epilogue or a layout that the kernel doesn't take.
    """
    given = f"{layer.inputs}->{layer.outputs} {layer.kernel} of {layer.weight.dtype} with {epilogue.activation}"
    accepted = f"3x3 of one group, 64 -> 64 channels of a half type, with {', '.join(KINDS)}"
    require(takes_ring(layer, epilogue, x.dtype, out.dtype), "layer", given, accepted)
    for name, tensor in (("x", x), ("out", out)):
        steps = [stride * tensor.element_size() for stride in descriptor_strides(tensor)[:3]]
        whole = tensor.data_ptr() % 16 == 0 and all(step % 16 == 0 for step in steps)
        require(whole, name, f"of steps {steps}", "multiples of 16 bytes")
    config = pick_config(layer)
    n, height, width, _ = out.shape
    (_, _, top), (_, _, left) = (axis.start for axis in layer.axes)
    strips = -(-width // config.strip)
    arguments: dict[str, object] = {
        "x_desc": _descriptor(x, [1, 1, config.strip, layer.inputs]),
        "w_desc": _descriptor(layer.weight[0], [layer.outputs, layer.inputs]),
        "y_desc": _descriptor(out, [1, 1, config.strip, layer.outputs]),
        "bias_ptr": layer.weight if epilogue.bias is None else epilogue.bias,
        "slopes_ptr": layer.weight if epilogue.slopes is None else epilogue.slopes,
        "strips": strips, "height": height, "top": top, "left": left, "slope": epilogue.slope,
        "BIAS": epilogue.bias is not None, "SLOPES": 0 if epilogue.slopes is None else epilogue.slopes.shape[0],
        "KIND": epilogue.activation, "ROWS": config.rows, "TW": config.strip, "CI": layer.inputs,
        "CO": layer.outputs, "RING": config.ring, "WARPS": config.warps,
    }  # fmt: skip
    name = f"conv2d_ring {layer.inputs}->{layer.outputs} 3x3 {str(x.dtype).removeprefix('torch.')}"
    grid = (n * strips, -(-height // config.rows))
    return Launch(name, _ring_kernel, grid, arguments, config.warps, 1, config, pipelined=True)


@operator("tilefuse::conv2d_ring", writes=("out",))
def _run(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    geometry: Sequence[int],
    slope: float,
    activation: str,
) -> Iterable[Launch]:
    epilogue = Epilogue(bias, cast(Kind, activation), slope, slopes)
    return (plan_launch(x, unpack_geometry(weight, geometry), epilogue, out),)


def _descriptor(tensor: Tensor, block: list[int]) -> object:
    kind = gl.bfloat16 if tensor.dtype == torch.bfloat16 else gl.float16
    layout = gl.NVMMASharedLayout.get_default_for(block, kind)
    return TensorDescriptor(tensor, list(tensor.shape), descriptor_strides(tensor), block, layout)


@jit
def _load_row(x_desc, ring, bars, n, y, x, row, RING: gl.constexpr):
    """Begin to load input row `row` of the strip, once for each column of taps."""
    slot = row % RING
    mbarrier.expect(bars.index(slot), 3 * x_desc.block_type.nbytes)
    for dx in gl.static_range(3):
        copy_in(x_desc, [n, y, x + dx, 0], bars.index(slot), ring.index(slot * 3 + dx))


@jit
def _ring_kernel(
    x_desc, w_desc, y_desc, bias_ptr, slopes_ptr, strips, height, top, left, slope,
    BIAS: gl.constexpr, SLOPES: gl.constexpr, KIND: gl.constexpr, ROWS: gl.constexpr, TW: gl.constexpr,
    CI: gl.constexpr, CO: gl.constexpr, RING: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    dtype: gl.constexpr = x_desc.dtype
    ring = gl.allocate_shared_memory(dtype, [RING * 3, 1, 1, TW, CI], x_desc.layout)
    w = gl.allocate_shared_memory(dtype, [9, CO, CI], w_desc.layout)
    out = gl.allocate_shared_memory(dtype, [1, 1, TW, CO], y_desc.layout)
    bars = gl.allocate_shared_memory(gl.int64, [RING, 1], mbarrier.MBarrierLayout())
    w_bar = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for i in gl.static_range(RING):
        mbarrier.init(bars.index(i), count=1)
    mbarrier.init(w_bar, count=1)
    # The copies run beside the threads: they have to see the barriers first.
    fence_async_shared()
    gl.thread_barrier()
    mbarrier.expect(w_bar, 9 * w_desc.block_type.nbytes)
    for tap in gl.static_range(9):
        copy_in(w_desc, [0, tap * CI], w_bar, w.index(tap))
    x0 = gl.program_id(0) % strips * TW
    n = gl.program_id(0) // strips
    y0 = gl.program_id(1) * ROWS
    for row in gl.static_range(RING - 1):
        _load_row(x_desc, ring, bars, n, y0 + top + row, x0 + left, row, RING)
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, CO, 16]
    )  # fmt: skip
    channel = gl.arange(0, CO, layout=gl.SliceLayout(0, layout))
    if BIAS:
        bias = gl.load(bias_ptr + channel).to(gl.float32)
    if SLOPES > 1:
        slopes = gl.load(slopes_ptr + channel).to(gl.float32)
    if SLOPES == 1:
        slopes = gl.load(slopes_ptr + channel * 0).to(gl.float32)
    mbarrier.wait(w_bar, 0)
    mbarrier.wait(bars.index(0), 0)
    mbarrier.wait(bars.index(1), 0)
    rows = gl.minimum(ROWS, height - y0)
    for row in range(rows):
        mbarrier.wait(bars.index((row + 2) % RING), ((row + 2) // RING) & 1)
        acc = gl.zeros((TW, CO), dtype=gl.float32, layout=layout)
        for dy in gl.static_range(3):
            for dx in gl.static_range(3):
                x = ring.index((row + dy) % RING * 3 + dx).reshape([TW, CI])
                acc = warpgroup_mma(x, w.index(dy * 3 + dx).permute((1, 0)), acc, is_async=True)
        acc = warpgroup_mma_wait(0, (acc,))
        # Every warp has read the oldest row, and every earlier store has left `out`, before they are written again.
        tma.store_wait(pendings=0)
        gl.thread_barrier()
        _load_row(x_desc, ring, bars, n, y0 + top + row + RING - 1, x0 + left, row + RING - 1, RING)
        if BIAS:
            acc += gl.expand_dims(bias, 0)
        if KIND == "prelu":
            acc = gl.where(acc < 0, acc * gl.expand_dims(slopes, 0), acc)
        elif KIND == "relu":
            acc = gl.where(acc < 0, 0.0, acc)
        elif KIND == "leaky_relu":
            acc = gl.where(acc < 0, acc * slope, acc)
        elif KIND == "silu":
            acc = acc / (1.0 + gl.exp(-acc))
        made = acc.to(dtype)
        if dtype == gl.float16:
            # As `stages.narrow`: what overflows is a NaN.
            made = made * 0.0 + made
        out.reshape([TW, CO]).store(made)
        fence_async_shared()
        gl.thread_barrier()
        copy_out(y_desc, [n, y0 + row, x0, 0], out)
    # Rows loaded ahead that nobody reads: a program must not end before they have arrived.
    for ahead in gl.static_range(RING - 3):
        mbarrier.wait(bars.index((rows + 2 + ahead) % RING), ((rows + 2 + ahead) // RING) & 1)
    tma.store_wait(pendings=0)
