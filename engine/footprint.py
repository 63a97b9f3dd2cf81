"""What a graph's geometry says: output scale, receptive field, alignment, and the ops that reach across the image.

The receptive field comes from exact backward interval arithmetic over every path (Araujo, Norris & Sim, "Computing
Receptive Fields of Convolutional Neural Networks", Distill 2019, extended to phases of strided and sub-pixel layers).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, lcm

from tilefuse.errors import ModelError
from tilefuse.geometry import AxisMap, Interval, axis_maps
from tilefuse.graph import Graph, Input, Node, Shape
from tilefuse.ops import (
    AdaptivePool2d,
    Binary,
    Concat,
    Conv2d,
    ConvTranspose2d,
    GroupNorm,
    Linear,
    Mean,
    Op,
    Pad,
    PRelu,
    Reshape,
    Resize,
    Slice,
)
from tilefuse.passes import unfuse
from tilefuse.rounding import unsteady_rounding

MINIMUM_SEARCHED_PX = 512


@dataclass(frozen=True)
class Axis:
    """Geometry along height or width: the output has scale · n + offset positions for n input pixels.

    Output positions of an aligned block of input pixels read `before` pixels ahead of the block and `after` behind it.
    Blocks whose origin and size are multiples of `alignment` all look alike to the network.
    """

    scale: Fraction
    offset: int
    before: int
    after: int
    alignment: int

    def padded(self, size: int, minimum: int) -> int:
        """Round an image size up to what the network can take."""
        return ceil(max(size, minimum) / self.alignment) * self.alignment

    def output_size(self, size: int) -> int:
        """Size of the result for an image of `size` pixels, aligned or not."""
        return ceil(size * self.scale) + self.offset


@dataclass(frozen=True)
class Footprint:
    """Geometry of an image-to-image graph. `minimum_px` is the smallest edge the network itself can take."""

    y: Axis
    x: Axis
    global_ops: tuple[str, ...]
    minimum_px: int

    @property
    def scale(self) -> Fraction:
        """Output pixels per input pixel along an edge.

        Raises:
            ModelError: height and width scale differently.
        """
        if self.y.scale != self.x.scale:
            raise ModelError(f"the network scales height by {self.y.scale} and width by {self.x.scale}")
        return self.y.scale

    @property
    def halo(self) -> int:
        """Input pixels a side that a core needs around it."""
        return max(self.y.before, self.y.after, self.x.before, self.x.after)

    @property
    def alignment(self) -> int:
        """Multiple, in input pixels, that a window's origin and size must have."""
        return lcm(self.y.alignment, self.x.alignment)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the result for an image of height x width."""
        return self.y.output_size(height), self.x.output_size(width)


@dataclass(frozen=True)
class _Place:
    """Where a spatial value stands along one axis: its size is scale · n + offset."""

    scale: Fraction
    offset: int


def footprint(graph: Graph) -> Footprint:
    """Derive the footprint of a graph that maps one or more images of one size to an image.

    Raises:
        ModelError: the graph takes no image or gives none (a latent decoder, a classifier).
    """
    graph = unfuse(graph)
    images = [spec.name for spec in graph.inputs if len(spec.shape) == 4 and spec.shape[2:] == (None, None)]
    if not images:
        raise ModelError("the network takes no image of free size: it has no height and width to tile")
    found: dict[str, None] = {}
    for name in sorted(unsteady_rounding(graph)):
        found[f"rounding after a sum of fractions ({name})"] = None
    axes = [_axis(graph, images, axis, found) for axis in (0, 1)]
    return Footprint(axes[0], axes[1], tuple(found), _minimum(graph, max(a.alignment for a in axes)))


def _axis(graph: Graph, images: list[str], axis: int, found: dict[str, None]) -> Axis:
    places = dict.fromkeys(images, _Place(Fraction(1), 0))
    maps: dict[str, AxisMap] = {}
    for node in graph.nodes:
        incoming = [places[name] for name in node.inputs if name in places]
        if not incoming:
            continue
        reason = global_reason(node, graph)
        if reason:
            found[reason] = None
            if _drops_space(node.op):
                continue
        if len({place.scale for place in incoming}) > 1:
            raise ModelError(f"{node.op.name} ({node.output}) joins values of different resolution")
        weight = graph.weights.get(node.inputs[1]) if isinstance(node.op, Conv2d | ConvTranspose2d) else None
        if isinstance(node.op, Conv2d | ConvTranspose2d) and weight is None:
            raise ModelError(f"{node.op.name} ({node.output}) takes its weight at run time: its reach is unknown")
        kernel = (weight.shape[2], weight.shape[3]) if weight is not None else (1, 1)
        move = axis_maps(node.op, kernel)[axis]
        maps[node.output] = move
        places[node.output] = _Place(incoming[0].scale * move.scale, move.constant(incoming[0].offset))
    out = graph.outputs[0]
    if out not in places:
        raise ModelError("the network's output is not an image: nothing of the input's height and width is left in it")
    alignment = lcm(*(place.scale.denominator for place in places.values()))
    first, last = _backward(graph, images, maps, places[out].scale * alignment)
    return Axis(places[out].scale, places[out].offset, max(0, -first), max(0, last - alignment + 1), alignment)


def _backward(graph: Graph, images: list[str], maps: dict[str, AxisMap], period: Fraction) -> Interval:
    """Input positions that one aligned block of the output reads."""
    needed: dict[str, Interval] = {graph.outputs[0]: (0, int(period) - 1)}
    for node in reversed(graph.nodes):
        if node.output not in needed or node.output not in maps:
            continue
        first, last = maps[node.output].reads(*needed[node.output])
        for name in node.inputs:
            if name in maps or name in images:
                known = needed.get(name, (first, last))
                needed[name] = min(known[0], first), max(known[1], last)
    reached = [needed[name] for name in images if name in needed] or [(0, 0)]
    return min(first for first, _ in reached), max(last for _, last in reached)


def global_reason(node: Node, graph: Graph) -> str | None:
    """Name an op whose result at a pixel depends on the whole image or on the position in it; None for a local op."""
    op = node.op
    spatial_dims = {2, 3, -1, -2}
    match op:
        case GroupNorm():
            kind = "instance_norm" if op.groups == 0 else "group_norm"
            return f"{kind} ({node.output})"
        case AdaptivePool2d() | Linear() | Reshape():
            return f"{op.name} ({node.output})"
        case Mean() if spatial_dims & set(op.dims):
            return f"{op.name} over space ({node.output})"
        case Slice() | Concat() if op.dim in spatial_dims:
            return f"{op.name} along space ({node.output})"
        case Resize() if op.scale is None:
            return f"resize to a fixed size ({node.output})"
        case Resize() if op.coordinates == "align_corners":
            return f"resize with align_corners ({node.output})"
        case Conv2d(padding_mode="circular") | Pad(mode="circular"):
            return f"circular padding ({node.output})"
    if isinstance(op, Binary | PRelu):
        for name in node.inputs:
            if name in graph.weights and any(size > 1 for size in graph.weights[name].shape[-2:]):
                return f"{op.name} with a weight that varies over space ({node.output})"
    return None


def _drops_space(op: Op) -> bool:
    """Tell whether an op's result has no height and width of its own."""
    return isinstance(op, AdaptivePool2d | Linear | Reshape | Mean) or (isinstance(op, Resize) and op.scale is None)


def _minimum(graph: Graph, alignment: int) -> int:
    """Smallest aligned edge whose shapes are valid throughout (reflection pads and unpadded convolutions need room)."""
    problem: ModelError | None = None
    for size in range(alignment, MINIMUM_SEARCHED_PX + alignment, alignment):
        try:
            graph.shapes(*(_shape(spec, size) for spec in graph.inputs))
        except ModelError as error:
            problem = error
        else:
            return size
    raise ModelError(f"no image of up to {MINIMUM_SEARCHED_PX} pixels an edge fits the network: {problem}")


def _shape(spec: Input, size: int) -> Shape:
    """Shape of an input for a square image of `size` pixels an edge and a batch of one."""
    return tuple(known if known is not None else (size if i >= 2 else 1) for i, known in enumerate(spec.shape))
