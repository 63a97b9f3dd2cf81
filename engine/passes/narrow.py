"""Convolutions of few outputs as wider ones with a pixel shuffle: the same sums, in vectors that are full.

CPU libraries vectorise a convolution over its outputs, sixteen floats at a time, so that one of three outputs, as at
the end of most generators, wastes four fifths of each multiplication; a transposed convolution is computed as a
gradient, which they do worse yet. Both are m x m neighbouring pixels at once: a convolution of stride m, with m x m
times the outputs and a kernel larger by m - 1, and a shuffle. On two Zen 4 cores a 9x9 layer of 3 outputs took 40 ms
for 104 in OpenVINO, the transposed layer that ends FSRCNN 107 for 421. Source of the transposed form: Shi et al., "Is
the deconvolution layer the same as a convolutional layer?", 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from tilefuse.graph import Graph, Node, Shape
from tilefuse.ops import Conv2d, ConvTranspose2d, PixelShuffle

_LANES = 16
# With more outputs what fills the vectors up costs more than it gives.
_MOST_OUTPUTS = 4
# Of a kernel that is small beside what it grows by, most of the larger one is zeros.
_LEAST_GAIN = 2.0


def widen_narrow_layers(graph: Graph, shapes: Mapping[str, Shape]) -> Graph:
    """Replace convolutions, transposed or not, of at most four outputs. `shapes` are those of every value.

    The graph that is returned takes inputs of these shapes only.
    """
    weights, nodes = dict(graph.weights), list[Node]()
    for node in graph.nodes:
        layer = _layer(node, weights, shapes)
        if layer is None:
            nodes.append(node)
            continue
        rows, columns, step = layer
        # Output pixels that one position of the new convolution gives along an edge.
        block = len(rows.taps)
        weight, *bias = (weights[name] for name in node.inputs[1:])
        if isinstance(node.op, ConvTranspose2d):
            weight = weight.transpose(0, 1)
        named = [f"{node.output}.wide", f"{node.output}.wide.bias"][: 1 + len(bias)]
        weights[named[0]] = _placed(weight, rows, columns)
        if bias:
            weights[named[1]] = bias[0].repeat_interleave(block**2)
        op = Conv2d((step, step), (rows.before, columns.before, rows.after, columns.after))
        nodes += [
            Node(op, (node.inputs[0], *named), f"{node.output}.blocks"),
            Node(PixelShuffle(block), (f"{node.output}.blocks",), node.output),
        ]
    return replace(graph, nodes=tuple(nodes), weights=weights)


@dataclass(frozen=True)
class _Axis:
    """One direction of the new convolution: its padding, and for each output of a block the old tap of each new one."""

    before: int
    after: int
    taps: tuple[tuple[int | None, ...], ...]

    def joined(self, count: int) -> _Axis:
        """Join `count` neighbouring positions into one: each block's taps lie one further than those before."""
        none = (None,)
        taps = [none * k + row + none * (count - 1 - k) for k in range(count) for row in self.taps]
        return replace(self, taps=tuple(taps))


def _layer(node: Node, weights: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> tuple[_Axis, _Axis, int] | None:
    """Lay a node out as rows, columns and stride of a wider convolution; None where it stays as it is."""
    op = node.op
    if not isinstance(op, Conv2d | ConvTranspose2d) or any(name not in weights for name in node.inputs[1:]):
        return None
    if op.groups != 1 or op.dilation != (1, 1) or op.stride[0] != op.stride[1] or min(op.padding) < 0:
        return None
    _, outputs, height, width = shapes[node.output]
    if outputs > _MOST_OUTPUTS:
        return None
    kernel = weights[node.inputs[1]].shape[2:]
    top, left, bottom, right = op.padding
    sides = ((top, bottom, kernel[0]), (left, right, kernel[1]))
    if isinstance(op, Conv2d):
        if op.stride != (1, 1) or op.padding_mode != "constant":
            return None
        rows, columns = (_Axis(before, after, (tuple(range(taps)),)) for before, after, taps in sides)
    else:
        if op.stride[0] == 1:
            return None
        phases = [_phases(*side, extra, op.stride[0]) for side, extra in zip(sides, op.output_padding, strict=True)]
        if phases[0] is None or phases[1] is None:
            return None
        rows, columns = phases[0], phases[1]
    block = len(rows.taps)
    count = _joined(rows, columns, outputs, (height // block, width // block))
    if block == count == 1:
        return None
    return rows.joined(count), columns.joined(count), count


def _joined(rows: _Axis, columns: _Axis, outputs: int, positions: tuple[int, int]) -> int:
    """Choose how many positions along an edge to join: as many as fill a vector and divide the image."""
    taps, block = (len(rows.taps[0]), len(columns.taps[0])), len(rows.taps)
    for count in (4, 2):
        gain = count**2 * taps[0] * taps[1] / ((taps[0] + count - 1) * (taps[1] + count - 1))
        fits = outputs * (block * count) ** 2 <= _LANES
        if fits and gain >= _LEAST_GAIN and not any(size % count for size in positions):
            return count
    return 1


def _phases(before: int, after: int, kernel: int, extra: int, stride: int) -> _Axis | None:
    """Lay one direction of a transposed convolution out as a convolution that gives `stride` outputs a position.

    Output stride · j + c is the sum of tap stride · t + (c + before) % stride of input j + (c + before) // stride - t.
    None where the outputs are no whole blocks.
    """
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


def _placed(weight: Tensor, rows: _Axis, columns: _Axis) -> Tensor:
    """Place the taps of a weight [O, C, KH, KW] in one of [O · outputs of a block, C, taps of rows, of columns]."""
    outputs, inputs = weight.shape[:2]
    high, wide = len(rows.taps[0]), len(columns.taps[0])
    placed = weight.new_zeros(outputs, len(rows.taps), len(columns.taps), inputs, high, wide)
    for i, row in enumerate(rows.taps):
        for m, y in enumerate(row):
            for j, column in enumerate(columns.taps):
                for n, x in enumerate(column):
                    if y is not None and x is not None:
                        placed[:, i, j, :, m, n] = weight[:, :, y, x]
    return placed.flatten(0, 2)
