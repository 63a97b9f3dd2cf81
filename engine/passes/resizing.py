"""Resizes as convolutions, where libraries would lose precision with the position.

Libraries compute where an output pixel falls in the input in single precision, so at x3 a bilinear weight is wrong by
1e-4 some thousand pixels from the origin, and a tile differs from the whole image. A resize by p/q is also p x p
convolutions of stride q, one a phase, followed by a pixel shuffle: the same numbers at every position.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from tilefuse.geometry import Interpolate
from tilefuse.graph import Graph, Node, Shape
from tilefuse.ops import Conv2d, Pad, PixelShuffle, Resize
from tilefuse.ops.resampling import keys_cubic


def lower_resizes(graph: Graph, shapes: dict[str, Shape]) -> Graph:
    """Replace inexact interpolations by padding, a depthwise convolution and a pixel shuffle.

    A factor p/q with p a power of two is exact as it is: its positions are whole multiples of 1/(2p). `shapes` gives
    every value's shape at a size the graph takes. Equal for heights and widths that are multiples of q at that place.
    """
    nodes, weights = list[Node](), dict(graph.weights)
    for node in graph.nodes:
        if not isinstance(node.op, Resize) or not _inexact(node.op):
            nodes.append(node)
            continue
        scale = node.op.scale[0] if node.op.scale else Fraction(1)
        kernel, before, after = _kernel(node.op, scale)
        channels = shapes[node.inputs[0]][1]
        phases = torch.einsum("ay,bx->abyx", kernel, kernel).flatten(0, 1)[:, None]
        name = f"{node.output}.phases"
        weights[name] = phases.repeat(channels, 1, 1, 1).to(torch.float32)
        padded, convolved = f"{node.output}.padded", f"{node.output}.convolved"
        q = scale.denominator
        nodes += [
            Node(Pad((before, before, after, after), "replicate"), node.inputs, padded),
            Node(Conv2d((q, q), groups=channels), (padded, name), convolved),
            Node(PixelShuffle(scale.numerator), (convolved,), node.output),
        ]
    return replace(graph, nodes=tuple(nodes), weights=weights)


def _inexact(op: Resize) -> bool:
    """Tell whether a library's single-precision positions drift: an interpolation by p/q, p no power of two."""
    if op.scale is None or op.scale[0] != op.scale[1] or op.mode == "nearest" or op.exclude_outside:
        return False
    p = op.scale[0].numerator
    return p & (p - 1) != 0 and op.coordinates in ("half_pixel", "pytorch_half_pixel", "asymmetric")


def _kernel(op: Resize, scale: Fraction) -> tuple[Tensor, int, int]:
    """Give the weights [p, taps] of every phase, and how many taps lie before and after a block of q input pixels."""
    p, q = scale.numerator, scale.denominator
    first, last = Interpolate(op, scale).reads(0, p - 1)
    taps = torch.arange(first, last + 1, dtype=torch.float64)
    offset = Fraction(0) if op.coordinates == "asymmetric" else Fraction(1, 2)
    position = torch.tensor([float((k + offset) / scale - offset) for k in range(p)], dtype=torch.float64)
    distance = (taps - position[:, None]).abs()
    if op.mode == "linear":
        weight = (1 - distance).clamp(min=0)
    else:
        weight = torch.where(distance < 2, keys_cubic(distance, op.cubic_a), 0.0)
    return weight, -first, max(0, last - (q - 1))
