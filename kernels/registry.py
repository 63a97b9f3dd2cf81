"""Every kernel the ahead-of-time gate compiles. A new kernel adds one line to `CASES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from tilefuse.kernels.chain_cases import chain_cases
from tilefuse.kernels.conv_cases import conv_cases, ring_cases
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.network_cases import network_cases
from tilefuse.kernels.plain_cases import plain_cases

# Each gives the launches, on meta tensors, that a compute capability (80, 90, 100) would run.
CASES: tuple[Callable[[int], Iterator[Launch]], ...] = (conv_cases, ring_cases, chain_cases, plain_cases, network_cases)


@cache
def launches(target: int) -> tuple[Launch, ...]:
    """Give every distinct launch for a compute capability: those that would compile to the same code once."""
    distinct: dict[object, Launch] = {}
    for cases in CASES:
        for launch in cases(target):
            distinct.setdefault(launch.key(), launch)
    return tuple(distinct.values())
