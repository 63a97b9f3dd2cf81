"""Chains of convolutions with few channels in one launch: intermediates never go through device memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.aliasing import require_apart
from tilefuse.kernels.chain_config import PROGRAMS, ChainConfig, Link, is_inner, joins, pick_config
from tilefuse.kernels.chain_kernel import _chain_kernel
from tilefuse.kernels.convolve import check_call, pack_geometry, packing, run_layer, unpack_geometry
from tilefuse.kernels.epilogue import Epilogue, Kind, Prologue, Residual
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.layer import Layer
from tilefuse.kernels.operators import operator
from tilefuse.kernels.toolchain import (
    FLOATS,
    IMAGES,
    emulated,
    require,
    require_nhwc,
    require_runnable,
    require_tensor,
    target,
)


@dataclass(frozen=True, eq=False)
class Inner:
    """A layer of a chain that has a successor: packed, with its bias and activation; slopes are prelu's."""

    layer: Layer
    bias: Tensor | None = None
    activation: Kind = "none"
    slope: float = 0.0
    slopes: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Chain:
    """A packed chain: pack once, run often. Made by `pack_chain`.

    Attributes:
        last: the last layer; its weight is in `weight` too, as the kernel reads it.
        weight: of all layers, rows padded with zeros. vectors: float32 biases and slopes of all but the last.
    """

    links: tuple[Link, ...]
    last: Layer
    weight: Tensor
    vectors: Tensor

    def to(self, device: torch.device | str) -> Chain:
        """Copy the numbers to a device."""
        moved = (each.to(device) for each in (self.last, self.weight, self.vectors))
        return Chain(self.links, *moved)  # type: ignore[arg-type]


def pack_chain(inner: Sequence[Inner], last: Layer) -> Chain:
    """Pack layers that run one after the other.

    Raises:
        BackendError: a layer that no chain takes, named by its position, or layers that don't fit one another.
    """
    require(bool(inner), "inner", "empty", "a layer or more before the last")
    dtype, layers = last.weight.dtype, [*(each.layer for each in inner), last]
    for i, layer in enumerate(layers):
        fits = joins(layer) if layer is last else is_inner(layer)
        where = f"layer {i} of a chain"
        shape = f"{layer.inputs * layer.groups}->{layer.outputs} {layer.kernel}, stride {layer.stride}"
        require(fits, where, shape, "stride 1 of one group and few channels that keeps the image's size")
        require(layer.weight.dtype == dtype, where, layer.weight.dtype, f"{dtype}, the last layer's")
        if i > 0:
            require(layer.inputs == layers[i - 1].outputs, where, shape, f"{layers[i - 1].outputs} input channels")
    links = (*(Link.of(each.layer, each.activation, each.slope) for each in inner), Link.of(last))
    config = pick_config(links, dtype)
    if config is None:
        raise BackendError(f"a chain of {len(links)} layers needs more scratch than fits; accepted: fewer layers")
    each = zip(links, layers, config.channels, config.depths, config.steps, strict=True)
    weights = [
        _padded(layer.weight[0], link, inputs, depth * steps).flatten() for link, layer, inputs, depth, steps in each
    ]
    vectors = [_vectors(part, link) for part, link in zip(inner, links, strict=False)]
    return Chain(links, last, torch.cat(weights), torch.cat(vectors))


def run_chain(
    x: Tensor,
    chain: Chain,
    *,
    input_scale: float = 1.0 / 255.0,
    epilogue: Epilogue | None = None,
    out: Tensor | None = None,
    scratch: Tensor | None = None,
) -> Tensor:
    """Run a packed chain on `x` [N, H, W, C] and return [N, OH, OW, O]: `out`'s channel slice where that is given.

    Args:
        input_scale: factor of uint8 and uint16 inputs.
        epilogue: of the last layer.
        scratch: `scratch_elements` of the weight's type, for the intermediates; made where it is missing.

    Raises:
        BackendError: before any launch, naming the tensor and what is accepted.
    """
    epilogue = epilogue or Epilogue()
    out = _check(x, chain, epilogue, out)
    place = out[..., epilogue.channel_offset : epilogue.channel_offset + chain.last.outputs]
    if place.numel() == 0:
        return place
    require_runnable(x)
    wanted = scratch_elements(chain, place.shape)
    if scratch is None:
        scratch = x.new_empty(wanted, dtype=chain.weight.dtype)
    require_tensor("scratch", scratch)
    given = f"{scratch.numel()} elements of {scratch.dtype} on {scratch.device}"
    fits = scratch.numel() >= wanted and scratch.dtype == chain.weight.dtype and scratch.is_contiguous()
    accepted = f"{wanted} contiguous elements of {chain.weight.dtype} or more on {x.device}"
    require(fits and scratch.device == x.device, "scratch", given, accepted)
    for name, read in (("x", x), ("weight", chain.weight), ("weight", chain.vectors), *epilogue.tensors()):
        require_apart(scratch, read, "scratch", name)
    for name, read in (("x", x), ("weight", chain.weight), ("weight", chain.vectors), ("scratch", scratch)):
        require_apart(place, read, "out", name)
    r0, r1, *_ = [*(r.tensor for r in epilogue.residuals), None, None]
    _run(
        place, scratch, x, chain.weight, chain.vectors, chain.last.weight, epilogue.bias, epilogue.slopes, r0, r1,
        epilogue.flag, [number for link in chain.links for number in _flat(link)], [link.slope for link in chain.links],
        [link.activation for link in chain.links], pack_geometry(chain.last),
        [r.upsample for r in epilogue.residuals], [input_scale, *epilogue.numbers()],
        epilogue.activation, epilogue.activation_last, epilogue.levels,
    )  # fmt: skip
    return place


def run_chain_ref(
    x: Tensor, inner: Sequence[Inner], last: Layer, *, epilogue: Epilogue | None = None, out: Tensor | None = None
) -> Tensor:
    """Compute the same one layer after the other, each by its own launch."""
    for each in inner:
        stage = Epilogue(bias=each.bias, activation=each.activation, slope=each.slope, slopes=each.slopes)
        x = run_layer(x, each.layer, epilogue=stage)
    return run_layer(x, last, epilogue=epilogue, out=out)


def scratch_elements(chain: Chain, result: Sequence[int]) -> int:
    """Give the elements of scratch that all programs of a launch need together, for a result [N, OH, OW, O]."""
    config = _config(chain.links, chain.weight.dtype)
    return _programs(config, chain.last, result) * config.scratch


def plan_launch(
    x: Tensor,
    chain: Chain,
    epilogue: Epilogue,
    out: Tensor,
    scratch: Tensor,
    *,
    capability: int,
    input_scale: float = 1.0 / 255.0,
    emulated: bool = False,
) -> Launch:
    """Choose grid and arguments for a checked call; meta tensors do."""
    links, last = chain.links, chain.last
    config = _config(links, chain.weight.dtype, capability, emulated)
    n, height, width, _ = out.shape
    grid_h, grid_w = -(-height // last.spread[0]), -(-width // last.spread[1])
    (th, tw), (sh, sw) = config.tile, last.stride
    biases, used = list[int](), 0
    for link in links[:-1]:
        biases.append(used)
        used += link.block_n * (2 if link.activation == "prelu" else 1)
    arguments: dict[str, object] = {
        "x_ptr": x, "w_ptr": chain.weight, "vectors_ptr": chain.vectors,
        **epilogue.arguments(chain.vectors),
        "scratch_ptr": scratch, "out_ptr": out,
        "tiles": n * -(-grid_h // th) * -(-grid_w // tw), "tiles_y": -(-grid_h // th), "tiles_x": -(-grid_w // tw),
        "grid_h": grid_h, "grid_w": grid_w, "x_height": x.shape[1], "x_width": x.shape[2],
        "height": height, "width": width,
        "xn": x.stride(0), "xh": x.stride(1), "xw": x.stride(2),
        "on": out.stride(0), "oh": out.stride(1), "ow": out.stride(2),
        "input_scale": input_scale,
        "ROWS": tuple(r for r, _ in config.regions), "COLS": tuple(c for _, c in config.regions),
        "TOPS": tuple(y for y, _ in config.origins), "LEFTS": tuple(x for _, x in config.origins),
        "CHANNELS": config.channels, "DEPTHS": config.depths, "STEPS": config.steps, "WEIGHTS": config.weights,
        "BUFFERS": config.buffers, "BLOCKS_N": tuple(link.block_n for link in links),
        "KHS": tuple(link.kernel[0] for link in links), "KWS": tuple(link.kernel[1] for link in links),
        "DHS": tuple(link.dilation[0] for link in links), "DWS": tuple(link.dilation[1] for link in links),
        "STARTS_Y": tuple(link.start[0] for link in links), "STARTS_X": tuple(link.start[1] for link in links),
        "KINDS": tuple(link.activation for link in links), "NUMBERS": tuple(link.slope for link in links),
        "BIASES": tuple(biases), "SH": sh, "SW": sw, "TH": th, "TW": tw, "SCRATCH": config.scratch,
        "COLUMNS": links[-1].columns, "OUTPUTS": last.outputs, "RY": last.spread[0], "RX": last.spread[1],
        "SHUFFLED": last.shuffle > 1,
        "PACK": packing(out, last), "BM": config.block_m,
    }  # fmt: skip
    widths = "->".join(str(number) for number in (links[0].inputs, *(link.columns for link in links)))
    exact = chain.weight.dtype == torch.float32
    return Launch(
        f"chain {widths} {str(x.dtype).removeprefix('torch.')}", _chain_kernel,
        (_programs(config, last, out.shape),), arguments, config.warps, config.stages, config,
        any(steps > 1 for steps in config.steps[1:]), exact, config.registers,
    )  # fmt: skip


def _check(x: Tensor, chain: Chain, epilogue: Epilogue, out: Tensor | None) -> Tensor:
    """Check a call, and return the buffer to write: `out`, or a new one."""
    require_nhwc("x", x, x, FLOATS + IMAGES)
    dtype, inputs = chain.weight.dtype, chain.links[0].inputs
    require(x.shape[3] == inputs, "x", f"of {x.shape[3]} channels", f"{inputs}, the first layer's inputs")
    require(x.dtype in (dtype, *IMAGES), "x", x.dtype, f"{dtype}, the weights', or uint8 or uint16")
    bfloat16 = torch.bfloat16 in (dtype, out.dtype if out is not None else epilogue.out_dtype)
    given = "bfloat16, which Triton's interpreter rounds wrongly"
    require(not (bfloat16 and emulated(x.device)), "a chain's type", given, "float32")
    # The last layer reads what its predecessors make: an image as large as x, of the weights' type.
    between = x.new_empty((1, 1, 1, chain.last.inputs), dtype=dtype).expand(*x.shape[:3], -1)
    made = check_call(between, chain.last, Prologue(), epilogue, out)
    require(chain.weight.device == x.device, "weight", f"on {chain.weight.device}", f"the device of x, {x.device}")
    return made


def _config(links: Sequence[Link], dtype: torch.dtype, capability: int = 90, emulated: bool = False) -> ChainConfig:
    config = pick_config(links, dtype, target=capability, interpreted=emulated)
    if config is None:
        raise BackendError(f"a chain of {len(links)} layers needs more scratch than fits; accepted: fewer layers")
    return config


def _programs(config: ChainConfig, last: Layer, result: Sequence[int]) -> int:
    n, height, width = result[:3]
    (th, tw), (ry, rx) = config.tile, last.spread
    return min(n * -(-height // (ry * th)) * -(-width // (rx * tw)), PROGRAMS)


def _padded(weight: Tensor, link: Link, inputs: int, terms: int) -> Tensor:
    """Pad a weight [columns, taps · channels]: channels as they lie in memory, whole steps, whole blocks of columns."""
    taps = link.kernel[0] * link.kernel[1]
    full = weight.new_zeros(link.block_n, taps, inputs)
    full[: link.columns, :, : link.inputs] = weight.reshape(link.columns, taps, link.inputs)
    padded = weight.new_zeros(link.block_n, terms)
    padded[:, : taps * inputs] = full.flatten(1)
    return padded


def _vectors(inner: Inner, link: Link) -> Tensor:
    """Lay out a layer's bias, and slopes where it has them, a number a column of the block."""
    vectors = torch.zeros(2 if inner.activation == "prelu" else 1, link.block_n, device=inner.layer.weight.device)
    if inner.bias is not None:
        vectors[0, : link.columns] = inner.bias.float()
    given = (inner.slopes is not None) == (inner.activation == "prelu")
    require(given, "slopes", f"{'given' if inner.slopes is not None else 'missing'}", "given for prelu, only for it")
    if inner.slopes is not None:
        vectors[1, : link.columns] = inner.slopes.float()
    return vectors.flatten()


def _flat(link: Link) -> list[int]:
    return [link.inputs, link.columns, *link.kernel, *link.stride, *link.dilation, *link.start]


@operator(
    "tilefuse::chain",
    writes=("out", "scratch", "flag"),
    schema="(Tensor(a!) out, Tensor(b!) scratch, Tensor x, Tensor weight, Tensor vectors, Tensor last, Tensor? bias, "
    "Tensor? slopes, Tensor? residual0, Tensor? residual1, Tensor(c!)? flag, int[] links, float[] link_slopes, "
    "str[] activations, int[] geometry, int[] upsample, float[] numbers, str activation, bool activation_last, "
    "bool levels) -> ()",
)
def _run(
    out: Tensor,
    scratch: Tensor,
    x: Tensor,
    weight: Tensor,
    vectors: Tensor,
    last: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    residual0: Tensor | None,
    residual1: Tensor | None,
    flag: Tensor | None,
    links: Sequence[int],
    link_slopes: Sequence[float],
    activations: Sequence[str],
    geometry: Sequence[int],
    upsample: Sequence[int],
    numbers: Sequence[float],
    activation: str,
    activation_last: bool,
    levels: bool,
) -> Iterable[Launch]:
    input_scale, slope, value0, scale0, value1, scale1, low, high, out_scale, out_shift = numbers
    tensors = [tensor for tensor in (residual0, residual1) if tensor is not None]
    each = zip(tensors, (scale0, scale1), (value0, value1), upsample, strict=False)
    layer = unpack_geometry(last, geometry)
    epilogue = Epilogue(
        bias, cast(Kind, activation), slope, slopes, tuple(Residual(*four) for four in each), activation_last,
        low, high, out_scale, out_shift, layer.shuffle, out.dtype, 0, levels, flag,
    )  # fmt: skip
    parts = [links[i : i + 10] for i in range(0, len(links), 10)]
    made = tuple(
        Link(i, c, (kh, kw), (sh, sw), (dh, dw), (y, x), cast(Kind, kind), number)
        for (i, c, kh, kw, sh, sw, dh, dw, y, x), kind, number in zip(parts, activations, link_slopes, strict=True)
    )
    launch = plan_launch(
        x, Chain(made, layer, weight, vectors), epilogue, out, scratch, capability=target(x.device),
        input_scale=input_scale, emulated=emulated(x.device),
    )  # fmt: skip
    return (launch,)
