"""Memory planning: one arena in which buffers that are never alive together share bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A TMA descriptor asks for 128, a vector load for 16; a cache line is 128.
ALIGNMENT_BYTES = 256


@dataclass(frozen=True)
class Lifetime:
    """A buffer's size and the first and last call that use it, both included."""

    name: str
    bytes: int
    first: int
    last: int


def lay_out(lifetimes: Sequence[Lifetime]) -> tuple[Mapping[str, int], int]:
    """Give every buffer's first byte, a multiple of 256, and the arena's size.

    Largest first, each at the lowest place free for its whole life (greedy by size: Pisarchyk and Lee, "Efficient
    Memory Management for Deep Neural Net Inference", 2020).
    """
    placed: list[tuple[int, Lifetime]] = []
    for life in sorted(lifetimes, key=lambda each: (-each.bytes, each.first, each.name)):
        together = [(o, p) for o, p in placed if p.first <= life.last and life.first <= p.last]
        offset = 0
        for start, other in sorted(together, key=lambda each: each[0]):
            if start - offset >= life.bytes:
                break
            offset = max(offset, _aligned(start + other.bytes))
        placed.append((offset, life))
    size = max((_aligned(offset + life.bytes) for offset, life in placed), default=0)
    return {life.name: offset for offset, life in placed}, size


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
