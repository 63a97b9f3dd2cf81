"""Every launch of the zoo's networks, as sessions make them: what the ahead-of-time gate compiles beside layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial

import torch
from torch import nn

from tilefuse.backends.triton.lowering import lower
from tilefuse.backends.triton.session import bind
from tilefuse.capture import from_module
from tilefuse.errors import ModelError
from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.dcgan import DCGAN
from tilefuse.export.generators.edsr import EDSR
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.export.generators.pggan import PGGAN
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.export.generators.span import SPAN
from tilefuse.export.generators.srresnet import MSRResNet, SRResNet
from tilefuse.export.generators.stylenet import TransformerNet
from tilefuse.footprint import footprint
from tilefuse.graph import Graph, Shape
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.planning import planning
from tilefuse.passes import fold_batch_norm, lower_resizes

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# A session's pixels: floats, or integers that its own first and last kernels convert.
PIXELS = (None, torch.uint8, torch.uint16)
# Pixels an edge, before a network's alignment rounds them up. What every step divides and what none does are compiled
# to different code: whole words or single values, and addresses known to be multiples of 16 or not.
SIZES = (96, 97)
IMAGE, LATENT = (1, 3, 32, 32), (1, 100, 1, 1)

# Published networks with the input they are captured with. Blocks repeat, so two stand for all.
PUBLISHED: Mapping[str, tuple[Callable[[], nn.Module], Shape]] = {
    **{f"ESPCN x{r}": (partial(ESPCN, r), IMAGE) for r in (2, 3, 4)},
    **{f"Compact x{r}": (partial(SRVGGNetCompact, num_conv=2, upscale=r), IMAGE) for r in (1, 2, 4)},
    "RRDB x4": (partial(RRDBNet, num_block=2), IMAGE),
    "RRDB x2": (partial(RRDBNet, num_block=2, unshuffle=2), IMAGE),
    "RRDB x1": (partial(RRDBNet, num_block=2, unshuffle=4), IMAGE),
    "SRResNet x4": (partial(SRResNet, num_block=2, bounded=True), IMAGE),
    **{f"MSRResNet x{r}": (partial(MSRResNet, num_block=2, upscale=r), IMAGE) for r in (2, 3, 4)},
    **{f"EDSR x{r}": (partial(EDSR, num_block=2, upscale=r), IMAGE) for r in (2, 3, 4)},
    **{
        f"EDSR 256 x{r}": (partial(EDSR, num_feat=256, num_block=2, upscale=r, res_scale=0.1), IMAGE) for r in (2, 3, 4)
    },
    **{f"FSRCNN x{r}": (partial(FSRCNN, r), (1, 1, 32, 32)) for r in (2, 3, 4)},
    **{f"SPAN x{r}": (partial(SPAN, upscale=r), IMAGE) for r in (2, 4)},
    "DCGAN": (DCGAN, LATENT),
    "PGGAN": (PGGAN, (1, 64, 1, 1)),
    "Style": (TransformerNet, IMAGE),
}


def network_cases(target: int) -> Iterator[Launch]:
    """Plan every launch of every network in each precision, for each kind of pixels, at both sizes."""
    for name in names():
        graph = network(name)
        for shapes in dict.fromkeys(input_shapes(graph, size) for size in SIZES):
            for dtype in DTYPES:
                for pixels in PIXELS:
                    size = "x".join(map(str, shapes[0][2:]))
                    kind = "float" if pixels is None else str(pixels).removeprefix("torch.")
                    yield from plan(graph, shapes, dtype, pixels, target=target, name=f"{name} {size} {kind}")


def plan(
    graph: Graph, shapes: tuple[Shape, ...], dtype: torch.dtype, pixels: torch.dtype | None, *, target: int, name: str
) -> Iterator[Launch]:
    """Give the launches of one session's program, on tensors without memory."""
    bound = bind(lower(graph, shapes, dtype, pixels=pixels), "meta")
    with planning(target) as launches:
        bound.replay()
    for launch in launches:
        yield replace(launch, name=f"{name} {launch.name}")


def names() -> tuple[str, ...]:
    """Name the bundled networks and the published ones."""
    # What reads checkpoints is needed for the bundled ones alone.
    from tilefuse.export.checkpoints import bundled

    return (*bundled(), *PUBLISHED)


@cache
def network(name: str) -> Graph:
    """Give the graph that an engine has of a network: a bundled one, or a published one with seeded weights.

    Raises:
        ModelError: no network is called so.
    """
    if name not in PUBLISHED:
        from tilefuse.source import load_model

        model = load_model(name)
        if model.graph is None:
            raise ModelError(f"{name} has no graph: {model.uncaptured}")
        return model.graph
    build, shape = PUBLISHED[name]
    torch.manual_seed(0)
    graph = fold_batch_norm(from_module(build().eval(), torch.rand(shape)))
    return lower_resizes(graph, graph.shapes(*input_shapes(graph, 1))) if _is_resizable(graph) else graph


def input_shapes(graph: Graph, size: int) -> tuple[Shape, ...]:
    """Shapes of a graph's inputs for square images of at least `size` pixels; latents have theirs."""
    if _is_resizable(graph):
        found = footprint(graph)
        size = found.y.padded(size, found.minimum_px)
    return tuple(tuple(known or (size if i >= 2 else 1) for i, known in enumerate(spec.shape)) for spec in graph.inputs)


def _is_resizable(graph: Graph) -> bool:
    """Tell whether a graph takes images of any size."""
    return any(None in spec.shape[2:] for spec in graph.inputs)
