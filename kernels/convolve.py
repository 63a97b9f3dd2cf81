"""Run packed layers: checks before any launch, the choice of kernel and stores, and the operator torch sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from tilefuse.kernels.aliasing import require_apart, require_distinct
from tilefuse.kernels.conv2d_pointer import _conv2d_kernel, _depthwise_kernel
from tilefuse.kernels.conv2d_rows import _conv2d_rows_kernel
from tilefuse.kernels.conv2d_tma import _conv2d_tma_kernel
from tilefuse.kernels.conv_config import band_rows, pick_config
from tilefuse.kernels.epilogue import Epilogue, Kind, Prologue, Residual, check_epilogue, check_prologue
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.layer import Axis, Layer
from tilefuse.kernels.operators import operator
from tilefuse.kernels.ring_config import chooses_ring
from tilefuse.kernels.toolchain import (
    FLOATS,
    IMAGES,
    descriptor_strides,
    emulated,
    require,
    require_nhwc,
    require_runnable,
    target,
    tensor_descriptor,
)

MOST_PIXELS = 2**31 - 2**16


def run_layer(
    x: Tensor,
    layer: Layer,
    *,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Run a packed layer on `x` [N, H, W, C] and return [N, OH, OW, O]: `out`'s channel slice where that is given.

    Raises:
        BackendError: before any launch, naming the tensor: a shape, type, layout or device the kernels don't take.
    """
    prologue, epilogue = prologue or Prologue(), epilogue or Epilogue()
    out = check_call(x, layer, prologue, epilogue, out)
    place = out[..., epilogue.channel_offset : epilogue.channel_offset + layer.outputs]
    if place.numel() == 0:
        return place
    require_runnable(x)
    tensors = [r.tensor for r in epilogue.residuals]
    r0, r1, *_ = [*tensors, None, None]
    _convolve(
        place, x, layer.weight, epilogue.bias, epilogue.slopes, r0, r1, prologue.scale, prologue.shift,
        epilogue.flag, pack_geometry(layer), [r.upsample for r in epilogue.residuals],
        [prologue.input_scale, prologue.slope, *epilogue.numbers()],
        prologue.activation, epilogue.activation, epilogue.activation_last, epilogue.levels,
    )  # fmt: skip
    return place


def check_call(x: Tensor, layer: Layer, prologue: Prologue, epilogue: Epilogue, out: Tensor | None) -> Tensor:
    """Check everything a call names, and return the buffer to write: `out`, or a new one."""
    require_nhwc("x", x, x, FLOATS + IMAGES)
    n, h, w, c = x.shape
    inputs = layer.inputs * layer.groups
    require(c == inputs, "x", f"of {c} channels", f"{inputs}, the weight's inputs times the groups")
    dtype = layer.weight.dtype
    require(x.dtype in (dtype, *IMAGES), "x", x.dtype, f"{dtype}, the weight's, or uint8 or uint16")
    require(layer.weight.device == x.device, "weight", f"on {layer.weight.device}", f"the device of x, {x.device}")
    require(epilogue.shuffle == layer.shuffle, "epilogue.shuffle", epilogue.shuffle, f"{layer.shuffle}, as packed")
    height, width = layer.output_size(h, w)
    require(min(h, w, height, width) > 0, "x", f"{h} x {w} pixels", "an image that fills the kernel after padding")
    largest = max(h * w, height * width)
    require(largest <= MOST_PIXELS, "x", f"{h} x {w} pixels", f"{MOST_PIXELS} pixels an image at most; run tiles")
    result, made = (n, height, width, layer.outputs), epilogue.result_dtype(x, layer.weight)
    check_prologue(prologue, x)
    check_epilogue(epilogue, x, layer.channels, result, made)
    if epilogue.flag is not None:
        given = f"given for {height} x {width} pixels"
        require(makes_whole(layer, height, width), "epilogue.flag", given, "sizes that grid positions fill as wholes")
    if out is None:
        require(epilogue.channel_offset == 0, "epilogue.channel_offset", epilogue.channel_offset, "0 without `out`")
        return x.new_empty(result, dtype=made)
    require_nhwc("out", out, x, FLOATS + IMAGES)
    wanted = epilogue.out_dtype
    require(wanted in (None, out.dtype), "out", out.dtype, f"{wanted}, epilogue.out_dtype")
    last = epilogue.channel_offset + layer.outputs
    fits = tuple(out.shape[:3]) == result[:3] and epilogue.channel_offset >= 0 and last <= out.shape[3]
    require(fits, "out", f"of shape {tuple(out.shape)}", f"{list(result[:3])} with {last} channels or more")
    place = out[..., epilogue.channel_offset : last]
    require_distinct(place, "out")
    for name, read in (("x", x), ("weight", layer.weight), *epilogue.tensors(), *prologue.tensors()):
        require_apart(place, read, "out", name)
    return out


def plan_launch(
    x: Tensor,
    layer: Layer,
    prologue: Prologue,
    epilogue: Epilogue,
    out: Tensor,
    *,
    capability: int,
    emulated: bool = False,
) -> Launch:
    """Choose kernel, grid and arguments for a checked call.

    Args:
        out: exactly the result's channels.
        capability: compute capability of the target, as 90.
        emulated: Triton's interpreter runs it, whose bfloat16 arithmetic has to be written out.
    """
    ring = chooses_ring(layer, epilogue, x.dtype, out.dtype, capability)
    if ring and not prologue.is_affine and describable(x) and describable(out):
        from tilefuse.kernels import conv2d_ring

        return conv2d_ring.plan_launch(x, layer, epilogue, out)
    residuals = sum(2 if residual.upsample > 1 else 1 for residual in epilogue.residuals)
    config = pick_config(layer, x.dtype, affine=prologue.is_affine, target=capability, residuals=residuals)
    if config.path in ("tma", "rows") and not describable(x):
        config = pick_config(layer, x.dtype, affine=True, target=capability)
        config = replace(config, stages=3)
    n, height, width, _ = out.shape
    grid_h, grid_w = (
        -(-size // (phases * spread))
        for size, phases, spread in zip((height, width), layer.phases, layer.spread, strict=True)
    )
    columns = layer.weight.shape[1] // layer.groups
    blocks = -(-columns // config.block_n) * layer.groups
    half_bits = emulated and layer.weight.dtype == torch.bfloat16
    made_bits = half_bits if epilogue.levels else emulated and out.dtype == torch.bfloat16
    (ay, by, cy), (ax, bx, cx) = (axis.start for axis in layer.axes)
    shared: dict[str, object] = {
        **epilogue.arguments(layer.weight), "out_ptr": out,
        "grid_h": grid_h, "grid_w": grid_w, "height": height, "width": width,
        "on": out.stride(0), "oh": out.stride(1), "ow": out.stride(2),
        "ay": ay, "by": by, "cy": cy, "ax": ax, "bx": bx, "cx": cx,
        "CI": layer.inputs, "COLUMNS": columns, "OUTPUTS": layer.outputs,
        "KH": layer.kernel[0], "KW": layer.kernel[1], "DH": layer.dilation[0], "DW": layer.dilation[1],
        "PY": layer.phases[0], "PX": layer.phases[1], "RY": layer.spread[0], "RX": layer.spread[1],
        "SHUFFLED": layer.shuffle > 1,
        "PACK": packing(out, layer), "BN": config.block_n, "BK": config.block_k,
        "UPCAST": half_bits, "BF16_BITS": made_bits,
    }  # fmt: skip
    pieces, exact = _shape_name(x, layer), layer.weight.dtype == torch.float32
    steps = layer.kernel[0] * layer.kernel[1] * -(-layer.inputs // config.block_k)
    if config.path in ("tma", "rows"):
        th, tw = config.tile
        described: dict[str, object] = {
            "x_desc": tensor_descriptor(x, [1, th, tw, config.block_k]),
            "w_desc": tensor_descriptor(layer.weight.flatten(0, 1), [config.block_n, config.block_k]),
            "TW": tw, "SWAP": config.swap,
        }  # fmt: skip
        if config.path == "rows":
            strips = -(-grid_w // tw)
            rows = band_rows(grid_h, n * strips * blocks, interpreted=emulated)
            arguments = shared | described | {"rows": rows, "ROWS": rows if emulated else 0}
            for absent in ("KH", "DH", "PY", "PX", "RY", "RX", "SHUFFLED"):
                del arguments[absent]
            return Launch(
                f"conv2d_rows {pieces}", _conv2d_rows_kernel, (n * strips * -(-grid_h // rows), blocks, 1), arguments,
                config.warps, config.stages, config, True,
            )  # fmt: skip
        arguments = shared | described | {"TH": th}
        grid = (n * -(-grid_h // th) * -(-grid_w // tw), blocks, layer.phases[0] * layer.phases[1])
        return Launch(
            f"conv2d_tma {pieces}", _conv2d_tma_kernel, grid, arguments, config.warps, config.stages, config, steps > 1,
            registers=config.registers,
        )  # fmt: skip
    arguments = shared | {
        "x_ptr": x, "w_ptr": layer.weight,
        "scale_ptr": layer.weight if prologue.scale is None else prologue.scale,
        "shift_ptr": layer.weight if prologue.shift is None else prologue.shift,
        "batch": n, "x_height": x.shape[1], "x_width": x.shape[2],
        "xn": x.stride(0), "xh": x.stride(1), "xw": x.stride(2),
        "input_scale": prologue.input_scale, "input_slope": prologue.slope,
        "GROUPS": layer.groups, "SH": layer.stride[0], "SW": layer.stride[1],
        "INTEGER": x.dtype in IMAGES, "NORM": prologue.scale is not None, "INPUT_KIND": prologue.activation,
        "BM": config.block_m, "FLAT": config.flat,
    }  # fmt: skip
    depthwise = config.path == "depthwise"
    if depthwise:
        arguments = {name: value for name, value in arguments.items() if name not in ("CI", "BK", "FLAT")}
        blocks = -(-layer.weight.shape[1] // config.block_n)
    area, images = (grid_h * grid_w, n) if prologue.scale is not None else (n * grid_h * grid_w, 1)
    grid = (images * -(-area // config.block_m), blocks, layer.phases[0] * layer.phases[1])
    kernel = _depthwise_kernel if depthwise else _conv2d_kernel
    rows = layer.inputs * x.element_size() % 16 == 0 and not config.flat and x.dtype == layer.weight.dtype
    return Launch(
        f"{'depthwise' if depthwise else 'conv2d'} {pieces}", kernel, grid, arguments, config.warps, config.stages,
        config, rows and steps > 1 and not prologue.is_affine and not depthwise, exact, config.registers,
    )  # fmt: skip


def makes_whole(layer: Layer, height: int, width: int) -> bool:
    """Tell whether grid positions fill a result as wholes: none makes pixels past its edge."""
    each = zip((height, width), layer.phases, layer.spread, strict=True)
    return all(size % (phases * spread) == 0 for size, phases, spread in each)


def describable(x: Tensor) -> bool:
    """Tell whether a TMA descriptor can address a tensor: its base and its steps are multiples of 16 bytes."""
    return x.data_ptr() % 16 == 0 and all(stride * x.element_size() % 16 == 0 for stride in descriptor_strides(x)[:3])


def packing(out: Tensor, layer: Layer) -> int:
    """Give the number of neighbours stored as one word: 4 or 2 bytes, 2 halves of a pixel shuffle, else 1.

    Bytes stored alone (1 where `out` is uint8: a pixel shuffle by 3, three channels at a width that 4 does not divide)
    are right but slow: the backend has `image_store`, which copies whole rows, make them of the float result.
    """
    size, (rows, columns) = out.element_size(), layer.spread
    if size > 2 or (size == 2 and rows * columns == 1) or layer.groups > 1:
        return 1
    # What a grid position writes into one row of the image lies side by side only if pixels do.
    if columns > 1 and (out.stride(2) != layer.outputs or out.shape[2] % columns):
        return 1
    for word in (4, 2):
        count = word // size
        steps = (columns * layer.outputs, out.stride(0), out.stride(1), out.stride(2) * columns)
        if count > 1 and out.data_ptr() % word == 0 and all(step % count == 0 for step in steps):
            return count
    return 1


def _shape_name(x: Tensor, layer: Layer) -> str:
    """Name a layer in reports."""
    kernel = "x".join(map(str, layer.kernel))
    each = [f"{layer.inputs * layer.groups}->{layer.outputs}", kernel, str(x.dtype).removeprefix("torch.")]
    extras = {"groups": layer.groups, "shuffle": layer.shuffle, "phases": layer.phases[0] * layer.phases[1]}
    return " ".join(each + [f"{name}={value}" for name, value in extras.items() if value > 1])


def pack_geometry(layer: Layer) -> list[int]:
    """Flatten all of a layer but its weight."""
    pairs = (layer.kernel, layer.stride, layer.dilation, layer.phases, layer.spread)
    axes = [number for axis in layer.axes for number in (*axis.start, *axis.extent)]
    return [layer.inputs, layer.groups, layer.shuffle, *(number for pair in pairs for number in pair), *axes]


def unpack_geometry(weight: Tensor, numbers: Sequence[int]) -> Layer:
    """Rebuild a layer; the inverse of `pack_geometry`."""
    inputs, groups, shuffle, *rest = numbers
    kernel, stride, dilation, phases, spread = ((rest[i], rest[i + 1]) for i in range(0, 10, 2))
    axes = [Axis((a, b, c), (d, e, f)) for a, b, c, d, e, f in (rest[10:16], rest[16:22])]
    return Layer(weight, inputs, kernel, stride, dilation, groups, phases, spread, shuffle, (axes[0], axes[1]))


@operator(
    "tilefuse::convolve",
    writes=("out", "flag"),
    schema="(Tensor(a!) out, Tensor x, Tensor weight, Tensor? bias, Tensor? slopes, Tensor? residual0, "
    "Tensor? residual1, Tensor? scale, Tensor? shift, Tensor(b!)? flag, int[] geometry, int[] upsample, "
    "float[] numbers, str input_activation, str activation, bool activation_last, bool levels) -> ()",
)
def _convolve(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    residual0: Tensor | None,
    residual1: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    flag: Tensor | None,
    geometry: Sequence[int],
    upsample: Sequence[int],
    numbers: Sequence[float],
    input_activation: str,
    activation: str,
    activation_last: bool,
    levels: bool,
) -> Iterable[Launch]:
    input_scale, input_slope, slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift = numbers
    tensors = [tensor for tensor in (residual0, residual1) if tensor is not None]
    each = zip(tensors, (scale0, scale1), (value0, value1), upsample, strict=False)
    epilogue = Epilogue(
        bias, cast(Kind, activation), slope, slopes, tuple(Residual(*four) for four in each), activation_last,
        low, high, out_scale, out_shift, geometry[2], out.dtype, 0, levels, flag,
    )  # fmt: skip
    prologue = Prologue(input_scale, scale, shift, cast(Kind, input_activation), input_slope)
    layer = unpack_geometry(weight, geometry)
    return (plan_launch(x, layer, prologue, epilogue, out, capability=target(x.device), emulated=emulated(x.device)),)
