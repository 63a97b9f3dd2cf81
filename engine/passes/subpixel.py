"""Transposed convolutions of few outputs as convolutions with a pixel shuffle.

oneDNN, behind OpenVINO and Inductor, computes a transposed convolution as the gradient of a convolution, vectorised
over its outputs: with one to four of them, as at the end of an upscaler or a GAN, most of a vector is empty. As a
convolution the last layer of FSRCNN took a third of the time, in bfloat16 a quarter. Source: Shi et al., "Is the
deconvolution layer the same as a convolutional layer?", 2016.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from tilefuse.graph import Graph, Node
from tilefuse.ops import Conv2d, ConvTranspose2d, PixelShuffle

# With more outputs the zeros that the phases are filled up with cost more than full vectors give.
_MOST_OUTPUTS = 4


def narrow_transposed_convolutions(graph: Graph) -> Graph:
    """Replace transposed convolutions of at most four outputs: the same sums, in another order."""
    weights, nodes = dict(graph.weights), list[Node]()
    for node in graph.nodes:
        axes = _axes(node, weights)
        if axes is None:
            nodes.append(node)
            continue
        rows, columns = axes
        stride = len(rows.taps)
        weight, *bias = (weights[name] for name in node.inputs[1:])
        named = [f"{node.output}.phases", f"{node.output}.phases.bias"][: 1 + len(bias)]
        weights[named[0]] = _phases(weight, rows, columns)
        if bias:
            weights[named[1]] = bias[0].repeat_interleave(stride**2)
        convolved = f"{node.output}.convolved"
        padding = rows.before, columns.before, rows.after, columns.after
        nodes += [
            Node(Conv2d(padding=padding), (node.inputs[0], *named), convolved),
            Node(PixelShuffle(stride), (convolved,), node.output),
        ]
    return replace(graph, nodes=tuple(nodes), weights=weights)


@dataclass(frozen=True)
class _Axis:
    """One direction of the convolution: padding, and for each phase which of the kernel's taps each of its taps is."""

    before: int
    after: int
    taps: tuple[tuple[int | None, ...], ...]


def _axes(node: Node, weights: dict[str, Tensor]) -> tuple[_Axis, _Axis] | None:
    """Lay a transposed convolution out as phases of equal size; None where it stays as it is."""
    op = node.op
    if not isinstance(op, ConvTranspose2d) or any(name not in weights for name in node.inputs[1:]):
        return None
    _, outputs, *kernel = weights[node.inputs[1]].shape
    if op.groups != 1 or op.dilation != (1, 1) or outputs > _MOST_OUTPUTS:
        return None
    if op.stride[0] != op.stride[1] or op.stride[0] < 2:
        return None
    top, left, bottom, right = op.padding
    sides = zip((top, left), (bottom, right), kernel, op.output_padding, strict=True)
    found = [_axis(*side, op.stride[0]) for side in sides]
    rows, columns = found
    return None if rows is None or columns is None else (rows, columns)


def _axis(before: int, after: int, kernel: int, extra: int, stride: int) -> _Axis | None:
    """Output position stride · j + c is the sum of tap stride · t + (c + before) % stride of input j + offset - t."""
    blocks, rest = divmod(kernel - before - after + extra, stride)
    if rest:
        return None
    taps = {
        (phase, (phase + before) // stride - tap // stride): tap
        for phase in range(stride)
        for tap in range((phase + before) % stride, kernel, stride)
    }
    offsets = [offset for _, offset in taps]
    first, last = min(offsets), max(offsets)
    # The result has `blocks` - 1 blocks more than the input has pixels.
    lead, trail = -first, blocks - 1 + last
    if min(lead, trail) < 0:
        return None
    rows = tuple(tuple(taps.get((phase, at)) for at in range(first, last + 1)) for phase in range(stride))
    return _Axis(lead, trail, rows)


def _phases(weight: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """Place the taps of a weight [C, O, KH, KW] in one of [O · stride², C, taps of rows, taps of columns]."""
    inputs, outputs = weight.shape[:2]
    stride, high, wide = len(rows.taps), len(rows.taps[0]), len(columns.taps[0])
    placed = weight.new_zeros(outputs, stride, stride, inputs, high, wide)
    for i, row in enumerate(rows.taps):
        for m, y in enumerate(row):
            for j, column in enumerate(columns.taps):
                for n, x in enumerate(column):
                    if y is not None and x is not None:
                        placed[:, i, j, :, m, n] = weight[:, :, y, x].T
    return placed.flatten(0, 2)
