"""Every layer of the zoo, on random numbers: right against fp32, the same bits tile by tile, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Protocol

import torch
from torch import Tensor

from tilefuse.backends.precision import exact_fp32
from tilefuse.kernels.conv2d import conv2d_ref
from tilefuse.kernels.conv_cases import CASES, Case
from tilefuse.kernels.conv_transpose2d import conv_transpose2d_ref
from tilefuse.kernels.convolve import run_layer
from tilefuse.kernels.epilogue import Epilogue, Prologue, Residual
from tilefuse.kernels.image_store import FULL_SCALE
from tilefuse.kernels.layer import Layer, pack_conv2d, pack_conv_transpose2d, pack_upsample_conv2d
from tilefuse.kernels.toolchain import IMAGES
from tilefuse.kernels.upsample_conv2d import upsample_conv2d_ref

# Largest and rms error allowed, relative to the largest and the rms value; for integers, in levels.
# bfloat16 has three bits less than float16.
LIMITS = {torch.float16: (4e-3, 2e-3), torch.bfloat16: (3.2e-2, 1.6e-2), torch.float32: (5e-5, 1e-5)}
# Levels of a type computed in another: of uint8 one, or what a finer error becomes in coarser arithmetic.
LIMITS_8 = {**dict.fromkeys((torch.float16, torch.float32), (1.0, 0.2)), torch.bfloat16: (3.0, 0.8)}
LIMITS_16 = {dtype: (largest * 65535, rms * 65535) for dtype, (largest, rms) in LIMITS.items()}
# Rows and columns left out at the start of the image a tile is compared with: multiples of every stride.
CUT = (4, 8)
# Sizes at which networks other than the upscalers run their layers.
SIZES = {
    **{"dcgan": (64, 256), "pggan": (64, 256), "head": (1, 64)},
    **{"style": (270, 480), "u-net": (256, 256), "edsr": (256, 256), "mobile": (256, 256)},
}


@dataclass(frozen=True)
class Check:
    """One configuration against fp32, and a tile against the whole."""

    kernel: str
    dtype: str
    max_error: float
    rms_error: float
    tiled_equal: bool
    passed: bool


class Subject(Protocol):
    """A kernel with its weights: `run` and `reference` take an image and the residuals.

    `ratio` is output pixels per input pixel, None where a pixel depends on the whole image; `margin` are output pixels
    that a cut at the image's start may change; `upsample` are the residuals' enlargements.
    """

    @property
    def name(self) -> str: ...
    @property
    def ratio(self) -> Fraction | None: ...
    @property
    def margin(self) -> int: ...
    @property
    def upsample(self) -> tuple[int, ...]: ...
    @property
    def run(self) -> Callable[[Tensor, list[Tensor]], Tensor]: ...
    @property
    def reference(self) -> Callable[[Tensor, list[Tensor]], Tensor]: ...
    @property
    def size(self) -> tuple[int, int]: ...
    def inputs(self, height: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, list[Tensor]]: ...
    def traffic(self, x: Tensor, residuals: list[Tensor], out: Tensor) -> tuple[int, int]: ...


@dataclass(frozen=True, eq=False)
class Layered:
    """A layer of the zoo with weights: `run` and `reference` take an image and the residuals."""

    case: Case
    layer: Layer
    run: Callable[[Tensor, list[Tensor]], Tensor]
    reference: Callable[[Tensor, list[Tensor]], Tensor]

    @property
    def name(self) -> str:
        """Name for reports."""
        case = self.case
        extras = {"scale": case.scale, "groups": case.groups, "shuffle": case.shuffle}
        shown = [f"{key}={value}" for key, value in extras.items() if value > 1]
        shown += ["norm"] * case.norm + [f"+{len(case.residuals)}"] * bool(case.residuals)
        shown += [f"{end} {kind}" for end, kind in (("from", case.x), ("to", case.out)) if kind is not None]
        edge = f"{case.kernel}x{case.kernel}"
        return " ".join([case.network, case.kind, f"{case.inputs}->{case.outputs}", edge, case.activation, *shown])

    @property
    def ratio(self) -> Fraction | None:
        """Output pixels per input pixel."""
        scale = Fraction(1, self.case.scale) if self.case.kind == "conv" else Fraction(self.case.scale)
        return scale * self.case.shuffle

    @property
    def margin(self) -> int:
        """Output pixels that a cut at the image's start may change."""
        return ceil(self.case.kernel * max(self.ratio or 1, Fraction(1))) + self.case.kernel

    @property
    def upsample(self) -> tuple[int, ...]:
        """The residuals' enlargements."""
        return self.case.residuals

    @property
    def size(self) -> tuple[int, int]:
        """Height and width it has in its network."""
        return SIZES.get(self.case.network, (540, 960))

    def inputs(self, height: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, list[Tensor]]:
        """Draw an image and the residuals."""
        size = (1, height, width, self.case.inputs)
        x = drawn(size, self.case.x or dtype, device)
        out_h, out_w = self.layer.output_size(height, width)
        shapes = [(1, -(-out_h // up), -(-out_w // up), self.layer.outputs) for up in self.case.residuals]
        return x, [torch.randn(shape, device=device).to(dtype) for shape in shapes]

    def traffic(self, x: Tensor, residuals: list[Tensor], out: Tensor) -> tuple[int, int]:
        """Bytes that have to move, and operations, two a product."""
        tensors = (x, *residuals, out, self.layer.weight)
        moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        case = self.case
        pixels = (
            x.shape[1] * x.shape[2] if case.kind == "transposed" else out.shape[1] * out.shape[2] // case.shuffle**2
        )
        return moved, 2 * pixels * case.kernel**2 * case.inputs * case.outputs // case.groups


def drawn(size: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Draw an image: normal numbers, or pixels over their whole range."""
    if dtype in IMAGES:
        return torch.randint(0, torch.iinfo(dtype).max + 1, size, device=device, dtype=torch.int32).to(dtype)
    return torch.randn(size, device=device).to(dtype)


def layers(dtype: torch.dtype, device: str, *, networks: tuple[str, ...] = ()) -> list[Layered]:
    """Give the layers of the zoo, or of some networks."""
    generator = torch.Generator().manual_seed(0)
    return [_layered(c, dtype, device, generator) for c in CASES if not networks or c.network in networks]


def check(subject: Subject, size: tuple[int, int], dtype: torch.dtype, device: str) -> Check:
    """Compare a kernel with its reference, and a tile with the whole."""
    x, residuals = subject.inputs(*size, dtype, device)
    made = subject.run(x, residuals)
    with exact_fp32():
        wanted = subject.reference(x, residuals)
    largest, rms = _errors(made, wanted)
    levels = {torch.uint8: LIMITS_8, torch.uint16: LIMITS_16}.get(made.dtype)
    worst, mean = LIMITS[made.dtype] if levels is None else levels[dtype]
    equal = _tiled(subject, x, residuals, made)
    passed = largest <= worst and rms <= mean and equal
    return Check(subject.name, str(dtype).removeprefix("torch."), largest, rms, equal, passed)


def _errors(made: Tensor, wanted: Tensor) -> tuple[float, float]:
    difference, scale = (made.double() - wanted.double()).abs(), wanted.double().abs()
    if made.dtype in IMAGES:
        return difference.max().item(), difference.square().mean().sqrt().item()
    rms = difference.square().mean().sqrt() / scale.square().mean().sqrt().clamp(min=1e-9)
    return (difference.max() / scale.max().clamp(min=1e-9)).item(), rms.item()


def _tiled(subject: Subject, x: Tensor, residuals: list[Tensor], whole: Tensor) -> bool:
    """Run the image without its first rows and columns: past the reach of the new border the bits must be the same."""
    ratio = subject.ratio
    if ratio is None:
        return True
    away = [int(cut * ratio) for cut in CUT]
    each = zip(residuals, subject.upsample, strict=True)
    cut = [tensor[:, away[0] // up :, away[1] // up :].contiguous() for tensor, up in each]
    part = subject.run(x[:, CUT[0] :, CUT[1] :].contiguous(), cut)
    margin = subject.margin
    inner = whole[:, away[0] + margin :, away[1] + margin :]
    # Integers of 16 bits have no comparison on a GPU.
    part, inner = (each.int() if each.dtype in IMAGES else each for each in (part[:, margin:, margin:], inner))
    return torch.equal(part, inner) and inner.numel() > 0


def _layered(case: Case, dtype: torch.dtype, device: str, generator: torch.Generator) -> Layered:
    draw = partial(torch.randn, generator=generator)
    transposed = case.kind == "transposed"
    sizes = (case.inputs, case.outputs // case.groups) if transposed else (case.outputs, case.inputs // case.groups)
    fan = case.inputs // case.groups * case.kernel**2
    weight = (draw(*sizes, case.kernel, case.kernel) / fan**0.5).to(device, dtype)
    # Transposed layers enlarge by exactly their stride.
    edge = (case.kernel - case.scale + 1) // 2 if transposed else case.kernel // 2
    shared: dict[str, object] = {"padding": (edge,) * 4, "groups": case.groups}
    if case.kind == "conv":
        shared["stride"] = (case.scale, case.scale)
        pack, plain = pack_conv2d, conv2d_ref
    elif case.kind == "upsample":
        shared["scale"] = (case.scale, case.scale)
        pack, plain = pack_upsample_conv2d, upsample_conv2d_ref  # type: ignore[assignment]
    else:
        shared |= {"stride": (case.scale, case.scale), "output_padding": (case.scale - case.kernel + 2 * edge,) * 2}
        pack, plain = pack_conv_transpose2d, conv_transpose2d_ref  # type: ignore[assignment]
    layer = pack(weight, shuffle=case.shuffle, **shared)  # type: ignore[arg-type]
    bias, slopes = (draw(layer.channels).to(device) * factor for factor in (0.1, 0.2))
    scale, shift = (draw(1, case.inputs).to(device) if case.norm else None for _ in range(2))
    full = 255.0 if case.x is None else FULL_SCALE[case.x]
    prologue = Prologue(1 / full, scale, shift, "relu" if case.norm else "none")

    def epilogue(residuals: list[Tensor]) -> Epilogue:
        return Epilogue(
            bias=bias, activation=case.activation, slope=0.2, slopes=slopes if case.activation == "prelu" else None,
            residuals=tuple(Residual(t, 1.0, 0.2, up) for t, up in zip(residuals, case.residuals, strict=True)),
            activation_last=case.activation_last, shuffle=case.shuffle, out_dtype=case.out,
            levels=case.out in IMAGES,
        )  # fmt: skip

    return Layered(
        case, layer,
        lambda x, r: run_layer(x, layer, prologue=prologue, epilogue=epilogue(r)),
        lambda x, r: plain(x, weight, prologue=prologue, epilogue=epilogue(r), **shared),  # type: ignore[arg-type]
    )  # fmt: skip
