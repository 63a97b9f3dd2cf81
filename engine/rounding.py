"""Where rounding makes tiles differ: sums of fractions depend on the order of adding, and rounding magnifies it."""

from __future__ import annotations

from torch import Tensor

from tilefuse.graph import Graph
from tilefuse.ops import Clamp, Conv2d, ConvTranspose2d, Linear, Mean, Pad, PixelShuffle, Pool2d, Resize, Round


def unsteady_rounding(graph: Graph) -> frozenset[str]:
    """Name the values made by rounding what a sum of fractions led to.

    Such a sum may differ in its last digit between two windows, which rounding makes a whole step. Sums of whole
    numbers are exact, as quantised layers have them, and pointwise ops give one result wherever they run.
    """
    if not any(isinstance(node.op, Round) for node in graph.nodes):
        return frozenset()
    whole, drifting, found = set[str](), set[str](), set[str]()
    whole |= {name for name, weight in graph.weights.items() if _is_whole(weight)}
    for node in graph.nodes:
        all_whole = all(name in whole for name in node.inputs)
        drifts = any(name in drifting for name in node.inputs)
        match node.op:
            case Round():
                whole.add(node.output)
                if drifts:
                    found.add(node.output)
            case Clamp(low=low, high=high) if all_whole and all(x is None or x == int(x) for x in (low, high)):
                whole.add(node.output)
            case Pad() | PixelShuffle() if all_whole:
                whole.add(node.output)
            case Conv2d() | ConvTranspose2d() | Linear() if all_whole:
                whole.add(node.output)
            case Conv2d() | ConvTranspose2d() | Linear() | Mean() | Resize() | Pool2d(kind="avg"):
                drifts = True
        if drifts:
            drifting.add(node.output)
    return frozenset(found)


def _is_whole(weight: Tensor) -> bool:
    return bool((weight == weight.round()).all())
