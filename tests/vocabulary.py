"""Graphs that every backend is tried on: each op of the vocabulary with its attributes, and small whole networks."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import get_args, get_type_hints

import torch
from torch import Tensor

from tilefuse.errors import ModelError
from tilefuse.graph import Graph, Input, Node
from tilefuse.ops import (
    Activation,
    ActivationKind,
    AdaptivePool2d,
    BatchNorm,
    Binary,
    Clamp,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Coordinates,
    GroupNorm,
    Linear,
    Mean,
    Op,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Pool2d,
    PRelu,
    Reshape,
    Resize,
    Slice,
    Unary,
)

CHANNELS = 8


class Builder:
    """Adds nodes one after another; weights are drawn from a seed so that values keep their size."""

    def __init__(self, channels: int = 3, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.channels = channels
        self.nodes: list[Node] = []
        self.weights: dict[str, Tensor] = {}

    def add(self, op: Op, *operands: str | Tensor) -> str:
        names = []
        for operand in operands:
            if isinstance(operand, Tensor):
                name = f"w{len(self.weights)}"
                self.weights[name] = operand
                operand = name
            names.append(operand)
        output = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, tuple(names), output))
        return output

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3, **attributes: object) -> str:
        attributes.setdefault("padding", (kernel // 2,) * 4)
        weight = self.normal(outputs, inputs, kernel, kernel) / (kernel * math.sqrt(inputs))
        return self.add(Conv2d(**attributes), x, weight, self.normal(outputs) * 0.1)  # type: ignore[arg-type]

    def act(self, x: str, kind: ActivationKind = "leaky_relu", slope: float = 0.2) -> str:
        return self.add(Activation(kind, slope), x)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def graph(self, *outputs: str) -> Graph:
        shape = (None, self.channels, None, None)
        return Graph((Input("x", shape),), tuple(self.nodes), outputs, self.weights)


def single(op: Op, *weights: Tensor, rank: int = 4, inputs: int = 1) -> Graph:
    """Make a graph of one node that reads `inputs` inputs, then the weights."""
    specs = tuple(Input(f"x{i}", (None,) * rank) for i in range(inputs))
    named = {f"w{i}": weight for i, weight in enumerate(weights)}
    return Graph(specs, (Node(op, (*(spec.name for spec in specs), *named), "y"),), ("y",), named)


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def convolutions() -> dict[str, Graph]:
    """Convolutions and linear maps."""
    c = CHANNELS
    cases: dict[str, Graph] = {}
    for name, conv, outputs, kernel in (
        ("3x3", Conv2d(padding=(1, 1, 1, 1)), 16, (3, 3)),
        ("1x1", Conv2d(), 5, (1, 1)),
        ("strided, uneven sides", Conv2d(padding=(2, 1, 3, 2), stride=(2, 1)), 16, (5, 4)),
        ("dilated", Conv2d(padding=(2, 4, 2, 4), dilation=(2, 4)), 16, (3, 3)),
        ("depthwise", Conv2d(padding=(1, 1, 1, 1), groups=c), 2 * c, (3, 3)),
        ("grouped", Conv2d(padding=(1, 1, 1, 1), groups=2), 12, (3, 3)),
        ("reflect", Conv2d(padding=(1, 1, 0, 1), padding_mode="reflect"), 16, (3, 3)),
        ("replicate", Conv2d(padding=(2, 2, 2, 2), padding_mode="replicate"), 16, (3, 3)),
        ("circular", Conv2d(padding=(1, 1, 1, 1), padding_mode="circular"), 16, (3, 3)),
    ):
        weight = _normal(outputs, c // conv.groups, *kernel) / math.sqrt(math.prod(kernel) * c / conv.groups)
        cases[f"conv2d {name}"] = single(conv, weight, _normal(outputs))
        cases[f"conv2d {name}, no bias"] = single(conv, weight)
    for name, transposed, outputs, kernel in (
        ("k4 s2 p1", ConvTranspose2d((2, 2), (1, 1, 1, 1)), 6, (4, 4)),
        ("k9 s3 p4, output padding", ConvTranspose2d((3, 3), (4, 4, 4, 4), (2, 2)), 3, (9, 9)),
        ("uneven sides", ConvTranspose2d((2, 3), (0, 1, 1, 0), (1, 0)), 16, (3, 3)),
        ("dilated", ConvTranspose2d((2, 2), dilation=(2, 1)), 16, (3, 3)),
        ("depthwise", ConvTranspose2d((2, 2), (1, 1, 1, 1), groups=c), c, (4, 4)),
        ("grouped", ConvTranspose2d((2, 2), (1, 1, 1, 1), groups=2), 6, (4, 4)),
    ):
        weight = _normal(c, outputs // transposed.groups, *kernel) / math.sqrt(c)
        cases[f"conv_transpose2d {name}"] = single(transposed, weight, _normal(outputs))
    cases["linear"] = single(Linear(), _normal(7, c), _normal(7), rank=2)
    gemm = Linear(alpha=0.5, beta=2.0, transpose_weight=False)
    cases["linear, scaled and transposed"] = single(gemm, _normal(c, 16), _normal(1, 16), rank=2)
    return cases


def pointwise() -> dict[str, Graph]:
    """Activations, clamping and arithmetic; inputs are positive where the function asks for it."""
    c = CHANNELS
    cases = {f"activation {kind}": single(Activation(kind, 0.2)) for kind in get_args(ActivationKind)}
    cases |= {f"unary {kind}": single(Unary(kind)) for kind in get_args(get_type_hints(Unary)["kind"])}
    for shape in ((c, 1, 1), (1, 1, 1), (1, c, 1, 1), (1,)):
        cases[f"prelu {shape}"] = single(PRelu(), _normal(*shape))
    cases["prelu by column"] = single(PRelu(), _normal(9))
    cases["clamp"] = single(Clamp(-0.3, 0.7))
    cases["clamp below"] = single(Clamp(low=0.1))
    for kind in ("add", "sub", "mul", "div", "max", "min"):
        binary = Binary(kind)
        cases[f"{kind} of tensors"] = single(binary, inputs=2)
        for shape in ((), (c, 1, 1), (1, c, 1, 1), (9,), (7, 9), (c, 7, 9)):
            cases[f"{kind} constant {shape}"] = single(binary, _normal(*shape).abs() + 0.3)
        swapped = Graph((Input("x", (None,) * 4),), (Node(binary, ("w", "x"), "y"),), ("y",), {"w": torch.tensor(1.7)})
        cases[f"{kind} constant on the left"] = swapped
    return cases


def layout() -> dict[str, Graph]:
    """Ops that move elements, pooling and normalisation."""
    c = CHANNELS
    cases: dict[str, Graph] = {}
    for dim in (1, 2, -1):
        cases[f"concat {dim}"] = single(Concat(dim), inputs=2)
    for cut in (Slice(1, 1, 3), Slice(1, -2), Slice(2, 1), Slice(-1, 0, -1), Slice(3, 0, None, 2)):
        cases[f"slice {cut.dim} {cut.start}:{cut.stop}:{cut.step}"] = single(cut)
    for order in ("crd", "dcr"):
        cases[f"pixel_shuffle {order}"] = single(PixelShuffle(2, order))
        cases[f"pixel_unshuffle {order}"] = single(PixelUnshuffle(3, order))
    for mode in ("constant", "reflect", "replicate", "circular"):
        for sides in ((1, 0, 1, 1), (0, 2, 3, 1), (-1, 0, 0, -1)):
            cases[f"pad {mode} {sides}"] = single(Pad(sides, mode, 0.3 if mode == "constant" else 0.0))
    for kind in ("max", "avg"):
        for name, pool in (
            ("2x2", Pool2d(kind, (2, 2), (2, 2))),
            ("padded", Pool2d(kind, (3, 3), (1, 1), (1, 1, 1, 1))),
            ("past the padding", Pool2d(kind, (3, 3), (1, 1), (1, 1, 1, 1), count_include_pad=False)),
            ("rounded up", Pool2d(kind, (3, 3), (2, 2), (1, 1, 1, 1), ceil_mode=True)),
            ("rounded up, uneven", Pool2d(kind, (3, 2), (2, 3), (0, 1, 1, 0), ceil_mode=True, count_include_pad=False)),
            ("dilated", Pool2d(kind, (2, 2), (1, 1), dilation=(2, 2))),
        ):
            cases[f"pool2d {kind} {name}"] = single(pool)
        for size in ((1, 1), (3, 2)):
            cases[f"adaptive_pool2d {kind} {size}"] = single(AdaptivePool2d(kind, size))
    for dims in ((2, 3), (1,), (1, 2, 3)):
        cases[f"mean {dims}"] = single(Mean(dims))
        cases[f"mean {dims} dropped"] = single(Mean(dims, keepdim=False))
    cases["mean over the batch"] = single(Mean((0,)))
    positive = _normal(c).abs() + 0.1
    cases["batch_norm"] = single(BatchNorm(1e-3), _normal(c), _normal(c), _normal(c), positive)
    for groups in (0, 1, 2, c):
        cases[f"group_norm {groups}"] = single(GroupNorm(groups), _normal(c), _normal(c))
    for shape in ((0, -1), (0, 2, -1, 9), (0, c, -1)):
        cases[f"reshape {shape}"] = single(Reshape(shape))
    return cases


def resizing() -> dict[str, Graph]:
    """Every mode, coordinate convention and rounding, at whole and broken scales and to a size."""
    cases: dict[str, Graph] = {}
    for coordinates in get_args(Coordinates):
        usual = coordinates in ("half_pixel", "asymmetric")
        for factor in (2, 3, Fraction(1, 2), Fraction(3, 2)) if usual else (2, Fraction(3, 2)):
            scale = (Fraction(factor), Fraction(factor))
            for rounding in ("floor", "round_prefer_floor"):
                nearest = Resize("nearest", scale, coordinates=coordinates, rounding=rounding)
                cases[f"nearest {coordinates} {rounding} x{factor}"] = single(nearest)
            for mode in ("linear", "cubic"):
                cases[f"{mode} {coordinates} x{factor}"] = single(Resize(mode, scale, coordinates=coordinates))
        for mode in ("nearest", "linear", "cubic"):
            cases[f"{mode} {coordinates} to 5x11"] = single(Resize(mode, size=(5, 11), coordinates=coordinates))
    whole = (Fraction(2), Fraction(2))
    cases["cubic, another kernel"] = single(Resize("cubic", whole, cubic_a=-0.5))
    cases["cubic, nothing outside"] = single(Resize("cubic", whole, exclude_outside=True))
    return cases


def networks() -> dict[str, Graph]:
    """Small generators of the usual kinds, on images of three channels."""
    return {
        "ESPCN": espcn(),
        "Compact": compact(),
        "RRDB": rrdb(),
        "U-Net": unet(),
        "transposed": transposed(),
        "reflected instance norm": stylised(),
        "squeeze and excite": gated(),
    }


def espcn(scale: int = 3) -> Graph:
    b = Builder()
    x = b.act(b.conv("x", 3, 16, 5), "tanh")
    x = b.act(b.conv(x, 16, 8), "tanh")
    x = b.add(PixelShuffle(scale), b.conv(x, 8, 3 * scale**2))
    base = b.add(Resize("cubic", (Fraction(scale), Fraction(scale))), "x")
    return b.graph(b.add(Binary("add"), x, base))


def compact(features: int = 16, depth: int = 3, scale: int = 2) -> Graph:
    b = Builder()
    x, channels = "x", 3
    for _ in range(depth):
        x, channels = b.add(PRelu(), b.conv(x, channels, features), b.normal(features, 1, 1) * 0.2), features
    x = b.add(PixelShuffle(scale), b.conv(x, features, 3 * scale**2))
    base = b.add(Resize("nearest", (Fraction(scale), Fraction(scale)), coordinates="asymmetric"), "x")
    return b.graph(b.add(Binary("add"), x, base))


def rrdb() -> Graph:
    b = Builder()
    first = b.conv("x", 3, 16)
    x = first
    for _ in range(2):
        features = [x]
        for layer in range(3):
            joined = b.add(Concat(), *features) if layer else x
            features.append(b.act(b.conv(joined, 16 + 8 * layer, 8)))
        dense = b.conv(b.add(Concat(), *features), 40, 16)
        x = b.add(Binary("add"), b.add(Binary("mul"), dense, torch.tensor(0.2)), x)
    x = b.add(Binary("add"), first, b.conv(x, 16, 16))
    x = b.add(Resize("nearest", (Fraction(2), Fraction(2)), coordinates="asymmetric"), x)
    return b.graph(b.conv(b.act(b.conv(x, 16, 16)), 16, 3))


def unet() -> Graph:
    b = Builder()
    top = b.act(b.conv("x", 3, 8), "relu")
    middle = b.act(b.conv(b.add(Pool2d("max", (2, 2), (2, 2)), top), 8, 16), "silu")
    low = b.act(b.conv(middle, 16, 16, stride=(2, 2)), "gelu")
    up = b.add(ConvTranspose2d((2, 2)), low, b.normal(16, 16, 2, 2) / 4, b.normal(16) * 0.1)
    x = b.act(b.conv(b.add(Concat(), up, middle), 32, 8), "hardswish")
    x = b.add(Resize("linear", (Fraction(2), Fraction(2))), x)
    return b.graph(b.add(Activation("sigmoid"), b.conv(b.add(Concat(), x, top), 16, 3)))


def transposed() -> Graph:
    b = Builder()
    x = b.act(b.conv("x", 3, 12, 5), "relu")
    deconv = ConvTranspose2d((3, 3), (4, 4, 4, 4), (2, 2))
    return b.graph(b.add(deconv, x, b.normal(12, 3, 9, 9) / 10, b.normal(3) * 0.1))


def stylised() -> Graph:
    b = Builder()
    x = b.conv("x", 3, 8, padding_mode="reflect")
    x = b.act(b.add(GroupNorm(0), x, b.normal(8).abs() + 0.5, b.normal(8)), "relu")
    x = b.add(Resize("nearest", (Fraction(2), Fraction(2)), coordinates="asymmetric"), x)
    x = b.conv(b.add(Pad((1, 1, 1, 1), "reflect"), x), 8, 3, padding=(0, 0, 0, 0))
    return b.graph(b.act(x, "tanh"))


def gated() -> Graph:
    b = Builder()
    x = b.add(PixelUnshuffle(2), "x")
    x = b.conv(x, 12, 16)
    squeezed = b.add(Reshape((0, -1)), b.add(Mean((2, 3)), x))
    hidden = b.act(b.add(Linear(), squeezed, b.normal(4, 16) / 4, b.normal(4)), "relu")
    gate = b.act(b.add(Linear(), hidden, b.normal(16, 4) / 2, b.normal(16)), "sigmoid")
    x = b.add(Binary("mul"), x, b.add(Reshape((0, 16, 1, 1)), gate))
    x = b.add(Binary("sub"), torch.tensor(1.0), x)
    x = b.add(PixelShuffle(2), b.add(Slice(1, 2, 14), b.add(Clamp(-2.0, 2.0), x)))
    return b.graph(x)


def example_inputs(graph: Graph, seed: int = 1, size: tuple[int, int] = (7, 9)) -> list[Tensor]:
    """Draw inputs for a graph of this file, of the given size or, where its strides want that, of 12x24.

    Values are normal with a deviation of 3, or lie in 0.1..1.1 where a logarithm, a root or a division asks for it.
    """
    generator = torch.Generator().manual_seed(seed)
    tame = any(isinstance(node.op, Unary) or node.op == Binary("div") for node in graph.nodes)

    def shapes(height: int, width: int) -> list[tuple[int, ...]]:
        return [(1, spec.shape[1] or CHANNELS, height, width)[: len(spec.shape)] for spec in graph.inputs]

    given = shapes(*size)
    try:
        graph.shapes(*given)
    except ModelError:
        given = shapes(12, 24)
    if tame:
        return [torch.rand(*shape, generator=generator) + 0.1 for shape in given]
    return [torch.randn(*shape, generator=generator) * (3 if len(graph.nodes) == 1 else 0.3) for shape in given]
