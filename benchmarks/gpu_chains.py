"""Chains beside their layers one by one, the ring kernel beside strips and tiles: subjects of the GPU check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu_kernels import drawn
from benchmarks.gpu_plain import Images
from tilefuse.kernels import conv_config
from tilefuse.kernels.chain import pack_chain, run_chain, run_chain_ref
from tilefuse.kernels.chain_cases import CASES, ChainCase
from tilefuse.kernels.conv2d import conv2d_ref
from tilefuse.kernels.conv2d_ring import run_ring
from tilefuse.kernels.conv_transpose2d import conv_transpose2d_ref
from tilefuse.kernels.convolve import run_layer
from tilefuse.kernels.epilogue import Epilogue, Prologue, Residual, prologue_ref
from tilefuse.kernels.image_store import FULL_SCALE
from tilefuse.kernels.layer import Layer, pack_conv2d
from tilefuse.kernels.ring_config import CHANNELS, KINDS, ring_missing
from tilefuse.kernels.toolchain import target


@dataclass(frozen=True, eq=False)
class Sequence:
    """Layers that run as one; see `Subject` in gpu_kernels. `products` and `weights` are a pixel's and the bytes'."""

    name: str
    channels: int
    run: Images
    reference: Images
    products: int
    weight_bytes: int
    ratio: Fraction | None = Fraction(1)
    margin: int = 4
    outputs: int = 0
    upsample: tuple[int, ...] = ()
    pixels: torch.dtype | None = None
    size: tuple[int, int] = (540, 960)

    def inputs(self, height: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, list[Tensor]]:
        """Draw an image, and what the last layer adds."""
        shape = (1, height, width, self.channels)
        x = drawn(shape, self.pixels or dtype, device)
        added = [torch.randn(1, height, width, self.outputs, device=device).to(dtype) for _ in self.upsample]
        return x, added

    def traffic(self, x: Tensor, residuals: list[Tensor], out: Tensor) -> tuple[int, int]:
        """Bytes of the image, what is added and the result: a chain has no others; and operations, two a product."""
        moved = sum(tensor.numel() * tensor.element_size() for tensor in (x, *residuals, out))
        return moved + self.weight_bytes, 2 * self.products * x.shape[1] * x.shape[2]


def chain_subjects(dtype: torch.dtype, device: str, *, networks: tuple[str, ...] = ()) -> list[Sequence]:
    """Give the chains of the zoo with random weights, or those of some networks, each followed by its layers."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    chosen = (case for case in CASES if not networks or case.network in networks)
    return [each for case in chosen for each in _chained(case, dtype, device, draw)]


def ring_subjects(dtype: torch.dtype, device: str) -> list[Sequence]:
    """Give the ring kernel's layers, each followed by the same by strips and by tiles; none where it is absent."""
    if ring_absent(dtype, device) is not None:
        return []
    generator = torch.Generator().manual_seed(0)
    draw, found = partial(torch.randn, generator=generator), list[Sequence]()
    for kind in KINDS:
        weight = (draw(CHANNELS, CHANNELS, 3, 3) / (9 * CHANNELS) ** 0.5).to(device, dtype)
        bias, slopes = (draw(CHANNELS).to(device) * factor for factor in (0.1, 0.2))
        epilogue = Epilogue(bias=bias, activation=kind, slope=0.2, slopes=slopes if kind == "prelu" else None)
        layer = pack_conv2d(weight, padding=(1, 1, 1, 1))
        ways = (("ring", run_ring), ("ring by strips", run_layer), ("ring by tiles", by_tiles))
        for name, run in ways:
            found.append(
                Sequence(
                    f"{name} {CHANNELS}->{CHANNELS} 3x3 {kind}", CHANNELS,
                    lambda x, _, run=run, layer=layer, epilogue=epilogue: run(x, layer, epilogue=epilogue),
                    lambda x, _, w=weight, e=epilogue: conv2d_ref(x, w, padding=(1, 1, 1, 1), epilogue=e),
                    9 * CHANNELS**2, weight.numel() * weight.element_size(),
                )
            )  # fmt: skip
    return found


def by_tiles(x: Tensor, layer: Layer, *, epilogue: Epilogue) -> Tensor:
    """Run a layer by tiles that goes down strips otherwise."""
    with mock.patch.object(conv_config, "streams", return_value=False):
        return run_layer(x, layer, epilogue=epilogue)


def ring_absent(dtype: torch.dtype, device: str) -> str | None:
    """Give the reason why the ring kernel is not measured, or None."""
    return "it computes halves" if dtype == torch.float32 else ring_missing(target(device))


def _chained(case: ChainCase, dtype: torch.dtype, device: str, draw: Callable[..., Tensor]) -> list[Sequence]:
    """Make the chain and, where all it reads and writes are floats, the same layers by a launch each."""
    *inner, last = shapes = case.shapes()
    fans = [shape[0 if case.transposed and shape is last else 1] * shape[2] * shape[3] for shape in shapes]
    weights = [(draw(*shape) / fan**0.5).to(device, dtype) for shape, fan in zip(shapes, fans, strict=True)]
    biases, slopes = ([(draw(shape[0]) * size).to(device) for shape in inner] for size in (0.1, 0.2))
    parts, end = case.pack(weights, biases, slopes)
    chain, bias = pack_chain(parts, end), (draw(end.channels) * 0.1).to(device)
    full = 255.0 if case.x is None else FULL_SCALE[case.x]

    def epilogue(residuals: list[Tensor]) -> Epilogue:
        return Epilogue(
            bias=bias, activation=case.activation, shuffle=case.shuffle, out_dtype=case.out,
            residuals=tuple(Residual(tensor, 1.0, 0.2, case.residual) for tensor in residuals),
            levels=case.out is not None,
        )  # fmt: skip

    def reference(x: Tensor, residuals: list[Tensor]) -> Tensor:
        value = prologue_ref(x, Prologue(1 / full), dtype).to(dtype)
        for part, weight in zip(parts, weights, strict=False):
            stage = Epilogue(bias=part.bias, activation=part.activation, slope=part.slope, slopes=part.slopes)
            value = conv2d_ref(value, weight, padding=(weight.shape[2] // 2,) * 4, epilogue=stage)
        edges = (case.kernel // 2,) * 4
        if not case.transposed:
            return conv2d_ref(value, weights[-1], padding=edges, epilogue=epilogue(residuals))
        stride = (case.transposed, case.transposed)
        return conv_transpose2d_ref(
            value, weights[-1], stride=stride, padding=edges, output_padding=case.extra, epilogue=epilogue(residuals)
        )  # fmt: skip

    widths = "->".join(map(str, (case.inputs, *(stage.outputs for stage in case.stages), case.outputs)))
    extras = f"x{max(case.shuffle, case.transposed)}{' +1' if case.residual else ''}"
    extras += "".join(f" {end} {kind}" for end, kind in (("from", case.x), ("to", case.out)) if kind is not None)
    scale = max(case.shuffle, case.transposed, 1)
    whole = Sequence(
        f"{case.network} chain {widths} {extras}", case.inputs,
        lambda x, r: run_chain(x, chain, input_scale=1 / full, epilogue=epilogue(r)), reference,
        sum(weight.numel() for weight in weights), chain.weight.numel() * chain.weight.element_size(), Fraction(scale),
        scale * sum(shape[2] // 2 + 1 for shape in shapes), end.outputs, (case.residual,) if case.residual else (),
        case.x,
    )  # fmt: skip
    if case.x is not None or case.out is not None:
        return [whole]
    one_by_one = replace(
        whole, name=f"{case.network} layers {widths} {extras}",
        run=lambda x, r: run_chain_ref(x, parts, end, epilogue=epilogue(r)),
    )  # fmt: skip
    return [whole, one_by_one]
