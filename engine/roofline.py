"""The ceilings of this machine, measured, and the traffic of a graph: what share of the possible a backend reaches.

Source: Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model for Multicore
Architectures", CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch

from tilefuse.backends.base import Precision
from tilefuse.backends.precision import exact_fp32
from tilefuse.backends.torch_eager import DTYPES
from tilefuse.cost import FLOAT_BYTES
from tilefuse.graph import Graph, Shape
from tilefuse.machine import cache_bytes
from tilefuse.timing import timed

_EDGE, _GPU_EDGE = 1536, 8192
# Four times the cache, or the copy would run inside it.
_COPY_CACHES = 4
_COPY_BYTES_MAX = 1 << 29


@dataclass(frozen=True)
class Ceiling:
    """What the machine gave in this run: a square matrix product in GFLOP/s, a memory copy in GB/s (read + written)."""

    precision: Precision
    matmul_gflops: float
    copy_gbs: float

    @property
    def ridge(self) -> float:
        """FLOPs a byte above which arithmetic, not memory, is the limit."""
        return self.matmul_gflops / self.copy_gbs


def measure_ceiling(precision: Precision = "fp32", device: str = "cpu", rounds: int = 5) -> Ceiling:
    """Time a matrix product and a copy in torch, on the CPU with its present number of threads; the best of the rounds.

    fp32 is exact: no TF32.
    """
    edge = _EDGE if device == "cpu" else _GPU_EDGE
    a = torch.rand(edge, edge, device=device).to(DTYPES[precision])
    cached = _COPY_CACHES * cache_bytes() if device == "cpu" else _COPY_BYTES_MAX
    source = torch.rand(min(cached, _COPY_BYTES_MAX) // FLOAT_BYTES, device=device)
    target = torch.empty_like(source)

    def best(call: Callable[[], object]) -> float:
        def waited() -> None:
            call()
            if device != "cpu":
                torch.cuda.synchronize(device)

        waited()
        return min(timed(waited) for _ in range(rounds))

    with torch.no_grad(), exact_fp32():
        matmul_s = best(lambda: torch.mm(a, a))
    copy_s = best(lambda: target.copy_(source))
    return Ceiling(precision, 2 * edge**3 / matmul_s / 1e9, 2 * source.numel() * FLOAT_BYTES / copy_s / 1e9)


def traffic_bytes(graph: Graph, shapes: Mapping[str, Shape], itemsize: int = FLOAT_BYTES) -> int:
    """Count the bytes that nodes read and write when each passes its result on through memory.

    Inductors, fused layers and caches need less, so a rate computed from it compares backends on one scale; it is not
    what the memory bus carried.
    """
    return itemsize * sum(
        prod(shapes[node.output])
        + sum(prod(graph.weights[name].shape if name in graph.weights else shapes[name]) for name in node.inputs)
        for node in graph.nodes
    )
