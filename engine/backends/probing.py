"""Try single ops on an engine: some conventions of resizing and pooling differ between engines and their versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tilefuse.backends.base import Session
from tilefuse.errors import BackendError
from tilefuse.graph import Graph, Input, Node, Shape
from tilefuse.model import Model
from tilefuse.ops import GroupNorm, Op, Pool2d, Resize
from tilefuse.passes import unfuse

# Far above rounding, far below what one misplaced sample of noise makes.
_TOLERANCE = 1e-3


def probe(
    engine: str, graph: Graph, shapes: Sequence[Shape], compile_fp32: Callable[[Model, Sequence[Shape]], Session]
) -> None:
    """Run every op whose convention is in doubt alone, on noise of its real size, and compare it with its definition.

    Raises:
        BackendError: the engine computes something else, or can't run the op.
    """
    graph = unfuse(graph)
    sizes = graph.shapes(*shapes)
    doubtful = {(node.op, sizes[node.inputs[0]][2:]) for node in graph.nodes if _in_doubt(node.op)}
    for op, size in doubtful:
        noise = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
        alone = Graph((Input("x", tuple(noise.shape)),), (Node(op, ("x",), "y"),), ("y",))
        (result,) = compile_fp32(Model(op.name, "", graph=alone), [tuple(noise.shape)]).run(noise)
        wanted = op.apply(noise)
        if result.shape != wanted.shape or not torch.allclose(result, wanted, rtol=0, atol=_TOLERANCE):
            raise BackendError(f"{engine} computes {op} of {size[0]}x{size[1]} pixels by another convention")
    for node in graph.nodes:
        if isinstance(node.op, GroupNorm):
            _, channels, *space = sizes[node.output]
            if torch.Size(space).numel() * channels == (node.op.groups or channels):
                raise BackendError(f"{engine} normalises single values, whose variance of 0 is lost in rounding")


def _in_doubt(op: Op) -> bool:
    if isinstance(op, Pool2d):
        return op.ceil_mode
    if not isinstance(op, Resize):
        return False
    whole = op.scale is not None and all(scale.denominator == 1 for scale in op.scale)
    settled = ("asymmetric", "floor") if op.mode == "nearest" else ("half_pixel", op.rounding)
    return not whole or op.exclude_outside or (op.coordinates, op.rounding) != settled
