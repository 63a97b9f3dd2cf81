"""Random small generators for property tests: `random_network` draws chains, skips, dense blocks, U-Nets, resizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tilefuse.capture import from_module
from tilefuse.footprint import Footprint, footprint
from tilefuse.graph import Graph
from tilefuse.passes import lower_resizes


@dataclass(frozen=True)
class Network:
    """A random network, its sizes multiples of `divisor`, at least `minimum`; the output is `scale` times as large."""

    module: nn.Module
    in_channels: int
    divisor: int
    minimum: int
    scale: Fraction

    def size(self, steps: int) -> int:
        """Give the smallest allowed size, plus `steps` times the divisor."""
        return self.divisor * (max(1, math.ceil(self.minimum / self.divisor)) + steps)


@st.composite
def random_network(
    draw: st.DrawFn, *, global_ops: bool = False, valid: bool = False, length: int = 4, scales: bool = True
) -> Network:
    """Draw a network of the op vocabulary, a few channels wide, with random weights, in eval mode.

    Args:
        global_ops: allow ops that see the whole image: instance and group norm, squeeze-excite, aligned corners,
            circular padding.
        valid: end with convolutions without padding, so that the output is `scale` times the input less a margin.
        length: blocks in the main chain.
        scales: allow the output to be larger or smaller than the input.
    """
    torch.manual_seed(draw(st.integers(0, 2**16)))
    builder = _Builder(draw, global_ops)
    in_channels = builder.channels = draw(st.integers(1, 4))
    chain = [builder.unshuffle()] if draw(st.integers(0, 5)) == 0 else []
    chain.append(builder.conv(draw(st.integers(2, 6))))
    for _ in range(draw(st.integers(0, length))):
        chain.append(builder.block(depth=2))
        if scales and draw(st.integers(0, 4)) == 0:
            if builder.step < 4 and draw(st.booleans()):
                chain.append(builder.down())
            elif builder.step >= 1:
                chain.append(builder.up(draw(st.integers(2, 3))))
    if valid:
        chain += [builder.valid_conv() for _ in range(draw(st.integers(1, 2)))]
    if builder.step > 1 and (not scales or draw(st.booleans())):
        while builder.step > 1:
            chain.append(builder.up(2))
    elif scales and builder.step == 1 and draw(st.booleans()):
        chain.append(builder.up(draw(st.integers(2, 4))))
    if draw(st.booleans()):
        chain.append(builder.conv(draw(st.integers(1, 3))))
    module = nn.Sequential(*chain).eval()
    _randomise(module)
    return Network(module, in_channels, builder.divisor, builder.minimum, 1 / builder.step)


ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: nn.LeakyReLU(0.2),
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    lambda: nn.GELU("tanh"),
    nn.SiLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.Mish,
    nn.ReLU6,
)


class _Builder:
    """Draws modules while it tracks channels, input pixels a pixel (`step`), and what sizes the network takes.

    `lost` counts the input pixels that convolutions without padding have taken away.
    """

    def __init__(self, draw: st.DrawFn, global_ops: bool) -> None:
        self.draw, self.global_ops = draw, global_ops
        self.channels = 0
        self.step = Fraction(1)
        self.divisor = 1
        self.minimum = 1
        self.lost = 0

    def _pick(self, *choices: object) -> object:
        return self.draw(st.sampled_from(choices))

    def _needs(self, size: int) -> None:
        self.minimum = max(self.minimum, math.ceil(size * self.step) + self.lost)

    def _rescale(self, factor: Fraction) -> None:
        self.step /= factor
        self.divisor = math.lcm(self.divisor, self.step.numerator)

    def sequence(self, depth: int) -> nn.Module:
        return nn.Sequential(*(self.block(depth) for _ in range(self.draw(st.integers(1, 2)))))

    def block(self, depth: int) -> nn.Module:
        """Draw a block that keeps channels and size."""
        kinds: list[Callable[[], nn.Module]] = [
            lambda: self.conv(self.channels),
            lambda: nn.Sequential(self.conv(self.channels), self.activation()),
            lambda: nn.Sequential(self.conv(self.channels), nn.BatchNorm2d(self.channels)),
            self.activation,
            self.transposed,
            self.smooth,
            lambda: nn.BatchNorm2d(self.channels),
            lambda: Gate(self.conv(self.channels), self._pick("product", "span")),
            self.dense,
        ]
        if self.channels % 2 == 0:
            kinds.append(self.split)
        if depth > 0:
            kinds.append(lambda: Residual(self.sequence(depth - 1), self._pick(1.0, 0.2, -1.0)))
            if self.step < 4:
                kinds += [lambda: self.unet(depth - 1), lambda: self.unshuffled(depth - 1)]
        if self.global_ops:
            kinds += [
                lambda: nn.InstanceNorm2d(self.channels, affine=self.draw(st.booleans())),
                lambda: nn.GroupNorm(self._pick(1, self.channels), self.channels),
                lambda: SqueezeExcite(self.channels, self.draw(st.booleans())),
            ]
        return self.draw(st.sampled_from(kinds))()

    def conv(self, out: int) -> nn.Module:
        """Draw a convolution that keeps the size: any kernel, dilation, groups and padding mode."""
        kernel = (self.draw(st.integers(1, 5)), self.draw(st.integers(1, 5)))
        dilation = self._pick(1, 1, 1, 2, 3)
        mode = self._pick("zeros", "zeros", "zeros", "reflect", "replicate", *(["circular"] if self.global_ops else []))
        groups = self._pick(1, 1, *(g for g in range(2, self.channels + 1) if self.channels % g == 0 and out % g == 0))
        margins = [dilation * (k - 1) for k in kernel]
        if mode in ("reflect", "circular"):
            self._needs(max(margins) + 1)
        options = {"groups": groups, "dilation": dilation, "bias": self.draw(st.booleans())}
        source, self.channels = self.channels, out
        if all(m % 2 == 0 for m in margins):
            half = (margins[0] // 2, margins[1] // 2)
            return nn.Conv2d(source, out, kernel, padding=half, padding_mode=mode, **options)
        if self.draw(st.booleans()):
            return nn.Conv2d(source, out, kernel, padding="same", padding_mode=mode, **options)
        top, left = (self.draw(st.integers(0, m)) for m in margins)
        pads = {
            "zeros": nn.ZeroPad2d,
            "reflect": nn.ReflectionPad2d,
            "replicate": nn.ReplicationPad2d,
            "circular": nn.CircularPad2d,
        }
        sides = (left, margins[1] - left, top, margins[0] - top)
        return nn.Sequential(pads[mode](sides), nn.Conv2d(source, out, kernel, **options))

    def valid_conv(self) -> nn.Module:
        kernel = self.draw(st.integers(2, 4))
        self.lost += math.ceil((kernel - 1) * self.step)
        self._needs(1)
        return nn.Conv2d(self.channels, self.channels, kernel)

    def transposed(self) -> nn.Module:
        half = self.draw(st.integers(0, 2))
        return nn.ConvTranspose2d(self.channels, self.channels, 2 * half + 1, padding=half)

    def smooth(self) -> nn.Module:
        half = self.draw(st.integers(1, 2))
        if self.draw(st.booleans()):
            return nn.MaxPool2d(2 * half + 1, 1, half)
        return nn.AvgPool2d(2 * half + 1, 1, half, count_include_pad=self.draw(st.booleans()))

    def activation(self) -> nn.Module:
        if self.draw(st.integers(0, 4)) == 0:
            return nn.PReLU(self.channels)
        return self._pick(*ACTIVATIONS)()

    def dense(self) -> nn.Module:
        width, growth = self.channels, self.draw(st.integers(1, 3))
        convs = []
        for i in range(self.draw(st.integers(1, 3))):
            self.channels = width + i * growth
            convs.append(self.conv(growth))
        self.channels = width + len(convs) * growth
        return Dense(convs, self.conv(width), self._pick(0.2, 1.0))

    def split(self) -> nn.Module:
        width, self.channels = self.channels, self.channels // 2
        body, self.channels = self.conv(width // 2), width
        return Split(body, self._pick("chunk", "slice", "split"))

    def unet(self, depth: int) -> nn.Module:
        width = self.channels
        down, inner = self.down(), self.sequence(depth)
        up = self.up(2)
        self.channels += width
        return UNet(nn.Sequential(down, inner, up), self.conv(width))

    def unshuffled(self, depth: int) -> nn.Module:
        width = self.channels
        self.channels *= 4
        self._rescale(Fraction(1, 2))
        body = nn.Sequential(nn.PixelUnshuffle(2), self.conv(4 * width), nn.PixelShuffle(2))
        self._rescale(Fraction(2))
        self.channels = width
        return body

    def unshuffle(self) -> nn.Module:
        """Draw the entry of a network that works at half the input's resolution."""
        self.channels *= 4
        self._rescale(Fraction(1, 2))
        return nn.PixelUnshuffle(2)

    def down(self) -> nn.Module:
        """Draw a halving of height and width."""
        width = self.channels
        kind = self._pick("conv", "conv", "max", "avg", "nearest", "bilinear", "unshuffle")
        self._rescale(Fraction(1, 2))
        if kind == "conv":
            kernel, padding = self._pick((2, 0), (3, 1), (4, 1), (5, 2))
            return nn.Conv2d(width, width, kernel, 2, padding)
        if kind == "unshuffle":
            return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * width, width, 1))
        if kind in ("nearest", "bilinear"):
            return Interpolate(0.5, kind, None)
        return nn.MaxPool2d(2) if kind == "max" else nn.AvgPool2d(2)

    def up(self, factor: int) -> nn.Module:
        """Draw an enlargement by an integer factor."""
        width = self.channels
        kind = self._pick("shuffle", "transposed", "nearest", "nearest-exact", "bilinear", "bicubic")
        self._rescale(Fraction(factor))
        if kind == "shuffle":
            return nn.Sequential(nn.Conv2d(width, width * factor**2, 1), nn.PixelShuffle(factor))
        if kind == "transposed":
            padding = self.draw(st.integers(0, 1))
            extra = self.draw(st.integers(0, 1)) if padding else 0
            kernel = factor + 2 * padding - extra
            return nn.ConvTranspose2d(width, width, kernel, factor, padding, extra)
        align = self.global_ops and self.draw(st.booleans())
        return Interpolate(float(factor), kind, align if kind.startswith("bi") else None)


class Residual(nn.Module):
    """x + scale · body(x)."""

    def __init__(self, body: nn.Module, scale: float) -> None:
        super().__init__()
        self.body, self.scale = body, scale

    def forward(self, x: Tensor) -> Tensor:
        if self.scale == 1.0:
            return self.body(x) + x
        return x - self.body(x) if self.scale == -1.0 else self.body(x) * self.scale + x


class Dense(nn.Module):
    """A dense block: every convolution reads the concatenation of all before it."""

    def __init__(self, convs: list[nn.Module], last: nn.Module, scale: float) -> None:
        super().__init__()
        self.convs, self.last, self.scale = nn.ModuleList(convs), last, scale

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in self.convs:
            features.append(F.leaky_relu(conv(torch.cat(features, 1)), 0.2))
        return self.last(torch.cat(features, 1)) * self.scale + x


class Gate(nn.Module):
    """Spatial gating without softmax: x · sigmoid(body(x)), or SPAN's (x + y) · (sigmoid(y) - 1/2)."""

    def __init__(self, body: nn.Module, kind: object) -> None:
        super().__init__()
        self.body, self.kind = body, kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x * torch.sigmoid(y) if self.kind == "product" else (x + y) * (torch.sigmoid(y) - 0.5)


class Split(nn.Module):
    """Halves the channels, works on one half, and joins them in the other order."""

    def __init__(self, body: nn.Module, kind: object) -> None:
        super().__init__()
        self.body, self.kind = body, kind

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        if self.kind == "chunk":
            a, b = x.chunk(2, 1)
        elif self.kind == "split":
            a, b = torch.split(x, [half, half], dim=1)
        else:
            a, b = x[:, :half], x[:, half:]
        return torch.cat([self.body(b), a], 1)


class UNet(nn.Module):
    """Joins the input with what comes back from lower resolution."""

    def __init__(self, inner: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = inner, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([x, self.inner(x)], 1))


class SqueezeExcite(nn.Module):
    """Scales channels by what the whole image says of them."""

    def __init__(self, channels: int, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.reduce, self.expand = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1) if self.pool else x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(y))))


class Interpolate(nn.Module):
    """Resizes by a factor, or to the size the factor gives."""

    def __init__(self, factor: float, mode: str, align: bool | None) -> None:
        super().__init__()
        self.factor, self.mode, self.align = factor, mode, align

    def forward(self, x: Tensor) -> Tensor:
        if self.factor > 1 and self.align:
            size = (x.shape[2] * int(self.factor), x.shape[3] * int(self.factor))
            return F.interpolate(x, size, mode=self.mode, align_corners=True)
        return F.interpolate(x, scale_factor=self.factor, mode=self.mode, align_corners=self.align)

    def extra_repr(self) -> str:
        return f"{self.factor}, {self.mode}, align_corners={self.align}"


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Draw weights that keep the signal's size through the network, and statistics that are not the identity."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            fan_in = part.weight[0].numel() if isinstance(part, nn.Conv2d) else part.weight[:, 0].numel()
            part.weight.normal_(0, math.sqrt(1.5 / fan_in))
            if part.bias is not None:
                part.bias.normal_(0, 0.1)
        elif isinstance(part, nn.BatchNorm2d):
            part.weight.uniform_(0.5, 1.5)
            part.bias.normal_(0, 0.1)
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
        elif isinstance(part, nn.PReLU):
            part.weight.uniform_(-0.2, 0.5)
        elif isinstance(part, nn.InstanceNorm2d | nn.GroupNorm) and part.weight is not None:
            part.weight.uniform_(0.5, 1.5)
            part.bias.normal_(0, 0.1)


def drawn_graph(data: st.DataObject, *, valid: bool) -> tuple[Network, Graph, Footprint]:
    """Draw a network, and give its graph, ready for tiles, with its footprint."""
    network: Network = data.draw(random_network(valid=valid), "network")
    example = network.size(2)
    graph = from_module(network.module, torch.rand(2, network.in_channels, example, example + network.divisor))
    found = footprint(graph)
    edge = max(found.y.padded(1, found.minimum_px), found.x.padded(1, found.minimum_px))
    return network, lower_resizes(graph, graph.shapes((1, network.in_channels, edge, edge))), found


def exact_graph() -> Graph:
    """Two layers whose weights are eighths: sums of 256ths are exact in any order, so pixels can be equal."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 4, 3, padding=1), nn.PixelShuffle(2))
    for parameter in module.parameters():
        parameter.data = torch.randint(-4, 5, parameter.shape) / 8
    return from_module(module, torch.rand(1, 1, 8, 8))
