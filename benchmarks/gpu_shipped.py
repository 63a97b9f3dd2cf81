"""Whole networks of the zoo in every precision: right against fp32, and the same bits tile by tile.

The layers of `gpu_kernels` are those whose speed is claimed; the networks launch every configuration that is shipped.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.gpu_record import MIN_DB, Row
from benchmarks.gpu_runners import tiles_equal
from tilefuse.backends.precision import exact_fp32
from tilefuse.backends.triton.lowering import lower
from tilefuse.backends.triton.session import TritonSession, bind
from tilefuse.errors import ModelError
from tilefuse.footprint import Footprint, footprint
from tilefuse.graph import Graph, Shape
from tilefuse.kernels.network_cases import PUBLISHED, input_shapes, names, network
from tilefuse.tiling import grid

# Pixels an edge of the whole images, and of a dry run's, at least; they are five times as large as a halo.
SIZE, SMALL = 161, 12
# bfloat16 has three bits less than float16: 18 dB.
LEAST_DB = {torch.float16: MIN_DB, torch.float32: MIN_DB, torch.bfloat16: MIN_DB - 18.0}


def shipped(dry: bool) -> tuple[str, ...]:
    """Name the networks to check; without safetensors the bundled weights can't be read."""
    if dry:
        return ("ESPCN x2",)
    return names() if find_spec("safetensors") is not None else tuple(PUBLISHED)


def missing() -> str | None:
    """Give the reason why bundled networks are not checked, or None."""
    return None if find_spec("safetensors") is not None else "safetensors is not installed"


def check_network(dry: bool, name: str, dtype: torch.dtype) -> Row:
    """Compare a network with fp32, and an image run tile by tile with the whole, bit by bit."""
    graph, device = network(name), "cpu" if dry else "cuda"
    tiling, size = _tileable(graph), SMALL if dry else SIZE
    shapes = input_shapes(graph, size if tiling is None else max(size, 5 * tiling.halo))
    generator = torch.Generator().manual_seed(3)
    given = [torch.rand(shape, generator=generator) for shape in shapes]
    made = _session(graph, shapes, dtype, device).run(*given)[0]
    with exact_fp32(), torch.no_grad():
        wanted = graph.to(device=device).evaluate(*(x.to(device) for x in given))[0].cpu()
    difference, peak = (made.cpu() - wanted).double(), (wanted.max() - wanted.min()).item()
    rms = difference.square().mean().sqrt().item() / peak
    right = math.isfinite(rms) and -20 * math.log10(max(rms, 1e-30)) >= LEAST_DB[dtype]
    equal = tiling is None or _tiled(graph, tiling, given[0], made, dtype, device)
    label = str(dtype).removeprefix("torch.")
    largest = difference.abs().max().item() / peak
    return {
        "kernel": f"network {name}", "dtype": label, "max_error": largest, "rms_error": rms, "tiled_equal": equal,
        "passed": right and equal,
    }  # fmt: skip


def _session(graph: Graph, shapes: tuple[Shape, ...], dtype: torch.dtype, device: str) -> TritonSession:
    return TritonSession(bind(lower(graph, shapes, dtype), device), shapes)


def _tiled(
    graph: Graph, found: Footprint, image: Tensor, whole: Tensor, dtype: torch.dtype, device: str
) -> bool:  # fmt: skip
    """Run the image tile by tile, and compare each tile with the whole."""
    height, width = image.shape[2:]
    cut = grid(height, width, found.y.padded(height // 3, found.minimum_px), found)
    parts = _session(graph, ((*image.shape[:2], *cut.window),), dtype, device)
    return tiles_equal(parts, cut, image, whole)


def _tileable(graph: Graph) -> Footprint | None:
    """Give the footprint of a graph that takes one image and tiles; else None, and there is nothing to compare."""
    try:
        found = footprint(graph)
    except ModelError:
        return None
    return None if found.global_ops or len(graph.inputs) > 1 else found
