"""Chains of the zoo that the ahead-of-time gate compiles, layer by layer as the lowering joins them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tilefuse.kernels.chain import Chain, Inner, pack_chain, plan_launch, run_chain, scratch_elements
from tilefuse.kernels.epilogue import Epilogue, Kind, Residual
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.layer import Layer, pack_conv2d, pack_conv_transpose2d
from tilefuse.kernels.toolchain import IMAGES
from tilefuse.ops.base import Pair

SIZE = 96


@dataclass(frozen=True)
class Stage:
    """A convolution "same" of a chain, (outputs, kernel), and what follows it."""

    outputs: int
    kernel: int
    activation: Kind = "none"


@dataclass(frozen=True)
class ChainCase:
    """A chain of a network.

    Attributes:
        stages: all layers but the last.
        outputs, kernel: of the last layer; `transposed` is its stride where it is a transposed convolution.
        residual: nearest factor by which the last layer's residual is enlarged, 0 for none.
        x, out: types of input and output where they are not the weights'.
    """

    network: str
    inputs: int
    stages: tuple[Stage, ...]
    outputs: int
    kernel: int
    shuffle: int = 1
    transposed: int = 0
    activation: Kind = "none"
    residual: int = 0
    x: torch.dtype | None = None
    out: torch.dtype | None = None

    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Give the shapes of all weights, as torch has them."""
        widths = (self.inputs, *(stage.outputs for stage in self.stages))
        pairs = zip(self.stages, widths, strict=False)
        inner = [(stage.outputs, before, stage.kernel, stage.kernel) for stage, before in pairs]
        ends = (widths[-1], self.outputs) if self.transposed else (self.outputs, widths[-1])
        return [*inner, (*ends, self.kernel, self.kernel)]

    @property
    def extra(self) -> Pair:
        """Output padding of a transposed layer, which enlarges by exactly its stride."""
        return (self.transposed - (self.kernel - 2 * (self.kernel // 2)),) * 2

    def pack(self, weights: list[Tensor], biases: list[Tensor], slopes: list[Tensor]) -> tuple[list[Inner], Layer]:
        """Pack weights of `shapes`; biases and slopes are of all layers but the last."""
        packed = [pack_conv2d(w, padding=(w.shape[2] // 2,) * 4) for w in weights[:-1]]
        each = zip(self.stages, packed, biases, slopes, strict=True)
        inner = [
            Inner(layer, bias, stage.activation, 0.2, slope if stage.activation == "prelu" else None)
            for stage, layer, bias, slope in each
        ]
        r, edges = self.transposed, (self.kernel // 2,) * 4
        if r:
            return inner, pack_conv_transpose2d(
                weights[-1], stride=(r, r), padding=edges, output_padding=self.extra
            )  # fmt: skip
        return inner, pack_conv2d(weights[-1], padding=edges, shuffle=self.shuffle)

    def chain(self, dtype: torch.dtype) -> Chain:
        """Pack the chain, on no device."""
        vectors = [torch.empty(stage.outputs, device="meta") for stage in self.stages]
        weights = [torch.empty(shape, dtype=dtype, device="meta") for shape in self.shapes()]
        return pack_chain(*self.pack(weights, vectors, vectors))

    def launch(self, dtype: torch.dtype, target: int) -> Launch:
        """Plan the launch on tensors without memory."""
        chain, make = self.chain(dtype), partial(torch.empty, device="meta")
        last = chain.last
        out_h, out_w = last.output_size(SIZE, SIZE)
        x = make(1, SIZE, SIZE, self.inputs, dtype=self.x or dtype)
        out = make(1, out_h, out_w, last.outputs, dtype=self.out or dtype)
        up = self.residual
        added = (Residual(make(1, out_h // up, out_w // up, last.outputs, dtype=dtype), 1.0, 0.2, up),) if up else ()
        epilogue = Epilogue(
            bias=make(last.channels), activation=self.activation, residuals=added, shuffle=self.shuffle,
            out_dtype=self.out, levels=self.out in IMAGES,
            flag=make(1, dtype=torch.int32) if self.out in IMAGES else None,
        )  # fmt: skip
        run_chain(x[:0], chain, epilogue=replace(epilogue, residuals=()))
        scratch = make(scratch_elements(chain, out.shape), dtype=dtype)
        launch = plan_launch(x, chain, epilogue, out, scratch, capability=target)
        return replace(launch, name=f"{self.network} {launch.name}")


def _espcn(activation: Kind, factor: int, **rest: object) -> ChainCase:
    stages = (Stage(64, 5, activation), Stage(32, 3, activation))
    return ChainCase("espcn", 3, stages, 3 * factor**2, 3, factor, **rest)  # type: ignore[arg-type]


def _fsrcnn(factor: int, d: int = 56, s: int = 12, m: int = 4, **rest: object) -> ChainCase:
    inner = (Stage(s, 1, "prelu"), *[Stage(s, 3, "prelu")] * m)
    stages = (Stage(d, 5, "prelu"), *inner, Stage(d, 1, "prelu"))
    return ChainCase("fsrcnn", 1, stages, 1, 9, transposed=factor, **rest)  # type: ignore[arg-type]


BYTES, WORDS = torch.uint8, torch.uint16
CASES: tuple[ChainCase, ...] = (
    *(_espcn("tanh", r) for r in (2, 3, 4)),
    *(_espcn("prelu", r, residual=r) for r in (2, 3, 4)),
    _espcn("tanh", 4, x=BYTES),
    _espcn("tanh", 4, x=BYTES, out=BYTES),
    *(_fsrcnn(r) for r in (2, 3, 4)),
    _fsrcnn(4, x=BYTES, out=BYTES),
    # The last layers of generators: features to an image.
    ChainCase("pggan", 16, (Stage(16, 3, "leaky_relu"),), 3, 1),
    ChainCase("u-net", 32, (Stage(32, 3, "relu"),), 3, 3, activation="sigmoid"),
    _espcn("tanh", 2, x=BYTES, out=BYTES),
    _espcn("prelu", 4, residual=4, out=BYTES),
    *(_espcn("tanh", r, x=WORDS, out=WORDS) for r in (2, 4)),
    _fsrcnn(2, x=BYTES, out=BYTES),
)


def chain_cases(target: int) -> Iterator[Launch]:
    """Plan every chain of the zoo in half precision, and some in the other types."""
    for case in CASES:
        yield case.launch(torch.float16, target)
    for case in (CASES[0], CASES[8]):
        yield case.launch(torch.bfloat16, target)
        yield case.launch(torch.float32, target)
