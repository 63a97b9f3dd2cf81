"""What the calls of a program do: one kernel each, with its constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilefuse.backends.triton.places import Operation
from tilefuse.backends.triton.tables import Tables
from tilefuse.kernels.chain import Chain, run_chain
from tilefuse.kernels.convolve import run_layer
from tilefuse.kernels.elementwise import Step, elementwise
from tilefuse.kernels.epilogue import Epilogue, Kind, Prologue, Residual
from tilefuse.kernels.layer import Layer
from tilefuse.kernels.norm import norm_statistics
from tilefuse.kernels.pad import pad
from tilefuse.kernels.pixel_norm import pixel_norm
from tilefuse.kernels.pixel_shuffle import pixel_shuffle
from tilefuse.kernels.pixel_unshuffle import pixel_unshuffle
from tilefuse.kernels.pool import pool
from tilefuse.kernels.resize import resize
from tilefuse.kernels.toolchain import narrowed
from tilefuse.ops import Op, Pair, Sides

Read = Sequence[Tensor]


@dataclass(frozen=True, eq=False)
class Convolve(Operation):
    """A packed layer. Reads x, with `statistics` scale and shift of a norm, and the residuals; writes the result.

    With `epilogue.levels` it writes a flag too. `scale` and `shift` float32 [N, C] are a constant prologue's,
    `input_scale` is of integer inputs; `scales` are a residual's own and the value's.
    """

    layer: Layer
    epilogue: Epilogue
    bias: Tensor | None = None
    slopes: Tensor | None = None
    upsample: tuple[int, ...] = ()
    scales: tuple[tuple[float, float], ...] = ()
    statistics: bool = False
    input_activation: Kind = "none"
    input_slope: float = 0.0
    scale: Tensor | None = None
    shift: Tensor | None = None
    input_scale: float = 1.0

    def run(self, reads: Read, writes: Read) -> None:
        x, *rest = reads
        scale, shift = self.scale, self.shift
        if self.statistics:
            scale, shift, *rest = rest
            scale, shift = scale.view(x.shape[0], -1), shift.view(x.shape[0], -1)
        prologue = Prologue(self.input_scale, scale, shift, self.input_activation, self.input_slope)
        residuals = tuple(
            Residual(tensor, own, value, factor)
            for tensor, (own, value), factor in zip(rest, self.scales, self.upsample, strict=True)
        )
        made, *flags = writes
        flag = flags[0] if flags else None
        epilogue = replace(self.epilogue, bias=self.bias, slopes=self.slopes, residuals=residuals, flag=flag)
        run_layer(x, self.layer, prologue=prologue, epilogue=epilogue, out=made)


@dataclass(frozen=True, eq=False)
class Chained(Operation):
    """A packed chain of layers. Reads x and the residuals; writes scratch and the result.

    With `epilogue.levels` it writes a flag too; `input_scale` is of integer inputs.
    """

    chain: Chain
    epilogue: Epilogue
    bias: Tensor | None = None
    slopes: Tensor | None = None
    upsample: tuple[int, ...] = ()
    scales: tuple[tuple[float, float], ...] = ()
    input_scale: float = 1.0

    def run(self, reads: Read, writes: Read) -> None:
        x, *rest = reads
        residuals = tuple(
            Residual(tensor, own, value, factor)
            for tensor, (own, value), factor in zip(rest, self.scales, self.upsample, strict=True)
        )
        scratch, made, *flags = writes
        flag = flags[0] if flags else None
        epilogue = replace(self.epilogue, bias=self.bias, slopes=self.slopes, residuals=residuals, flag=flag)
        run_chain(x, self.chain, input_scale=self.input_scale, epilogue=epilogue, out=made, scratch=scratch)


@dataclass(frozen=True, eq=False)
class Pointwise(Operation):
    """A chain of pointwise steps. `sources` are its inputs in order: a number means that tensor of those it reads."""

    sources: tuple[int | Tensor, ...]
    steps: tuple[Step, ...]

    def run(self, reads: Read, writes: Read) -> None:
        inputs = [reads[each] if isinstance(each, int) else each for each in self.sources]
        elementwise(inputs, self.steps, out=writes[0])


@dataclass(frozen=True, eq=False)
class Statistics(Operation):
    """Instance or group statistics: writes scratch, then [3, N, 1, 1, C] of mean, scale and shift."""

    groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def run(self, reads: Read, writes: Read) -> None:
        norm_statistics(reads[0], self.groups, self.weight, self.bias, self.eps, scratch=writes[0], out=writes[1])


@dataclass(frozen=True)
class NormalisePixels(Operation):
    """Pixel norm."""

    eps: float

    def run(self, reads: Read, writes: Read) -> None:
        pixel_norm(reads[0], self.eps, out=writes[0])


@dataclass(frozen=True)
class Border(Operation):
    """Padding or cropping."""

    sides: Sides
    mode: str
    value: float

    def run(self, reads: Read, writes: Read) -> None:
        pad(reads[0], self.sides, self.mode, self.value, out=writes[0])


@dataclass(frozen=True)
class Shuffle(Operation):
    """Pixel shuffle, or its inverse."""

    factor: int
    order: str
    inverse: bool

    def run(self, reads: Read, writes: Read) -> None:
        (pixel_unshuffle if self.inverse else pixel_shuffle)(reads[0], self.factor, self.order, out=writes[0])


@dataclass(frozen=True)
class Pooling(Operation):
    """Maximum or average of windows."""

    kind: str
    kernel: Pair
    stride: Pair
    padding: Sides
    dilation: Pair
    size: Pair
    count_include_pad: bool

    def run(self, reads: Read, writes: Read) -> None:
        pool(
            reads[0], self.kind, self.kernel, self.stride, self.padding, self.dilation, self.size,
            self.count_include_pad, out=writes[0],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Interpolation(Operation):
    """Resize by tables."""

    tables: Tables

    def run(self, reads: Read, writes: Read) -> None:
        resize(reads[0], *self.tables, out=writes[0])


@dataclass(frozen=True, eq=False)
class TorchOperation(Operation):
    """An op without a kernel, run by torch on NCHW views. `sources` as in `Pointwise`, `ranks` of what is read."""

    op: Op
    sources: tuple[int | Tensor, ...]
    ranks: tuple[int, ...]
    rank: int

    def run(self, reads: Read, writes: Read) -> None:
        seen = [logical(x, rank) for x, rank in zip(reads, self.ranks, strict=True)]
        inputs = [seen[each] if isinstance(each, int) else each for each in self.sources]
        with torch.no_grad():
            made = self.op.apply(*inputs)
            logical(writes[0], self.rank).copy_(narrowed(made, made.dtype))


def logical(x: Tensor, rank: int) -> Tensor:
    """View a value as the graph has it: [N, H, W, C] as NCHW, [N, 1, 1, C] of a vector as [N, C]."""
    if rank == 4:
        return x.permute(0, 3, 1, 2)
    return x[:, 0, 0] if rank == 2 else x
