"""Chains of layers with few channels: what each layer needs, the tile that runs through all of them, and when it pays.

Everything here depends on the layers and their type alone, never on the image or the device: every window of a network
runs the same tiles in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from tilefuse.kernels.conv_config import MOST_REGISTERS
from tilefuse.kernels.epilogue import Kind
from tilefuse.kernels.layer import LEAST_COLUMNS, ONE, Layer
from tilefuse.ops.base import Pair

# Two a multiprocessor of an H100 or H200, whose scratch stays in its 50 MB of L2 together.
PROGRAMS = 264
MOST_SCRATCH_BYTES = 144 * 1024
MOST_COLUMNS = 64
# A layer wider than this on both sides is bound by products, which tiles loaded by TMA feed better.
FEW_CHANNELS = 32
MOST_LAYERS = 8
# Layers of a chain that 8 warps run before sm_90.
SHORT = 4
# Pixels of the last layer's input, height and width, tried in this order.
TILES: tuple[Pair, ...] = ((16, 32), (16, 16), (8, 16), (8, 8))
# Operations that cost as much as moving one byte: 40 % of 790 TFLOP/s in half precision, over 4.3 TB/s (an H200).
RATIO = 73.0


@dataclass(frozen=True)
class Link:
    """One layer of a chain, without its numbers.

    Attributes:
        columns: of the packed weight: outputs, times the positions that the last layer spreads over.
        start: input position of the first tap for grid position 0.
        activation, slope: what follows, rounded to the weight's type; the last layer's come from its epilogue.
    """

    inputs: int
    columns: int
    kernel: Pair
    stride: Pair
    dilation: Pair
    start: Pair
    activation: Kind = "none"
    slope: float = 0.0

    @staticmethod
    def of(layer: Layer, activation: Kind = "none", slope: float = 0.0) -> Link:
        """Read a packed layer of one phase."""
        start = (layer.axes[0].first(0), layer.axes[1].first(0))
        columns = layer.weight.shape[1]
        return Link(layer.inputs, columns, layer.kernel, layer.stride, layer.dilation, start, activation, slope)

    @property
    def block_n(self) -> int:
        """Columns of a product: a power of two."""
        return max(LEAST_COLUMNS, 1 << (self.columns - 1).bit_length())

    @property
    def channels(self) -> int:
        """Channels in scratch: whole words of 16 bytes and whole steps of a product, zeros behind the layer's own."""
        return -(-self.columns // LEAST_COLUMNS) * LEAST_COLUMNS


@dataclass(frozen=True)
class ChainConfig:
    """How a chain is run.

    Attributes:
        tile: grid positions of the last layer, rows and columns, that a program makes at a time.
        regions: rows and columns that each layer makes for a tile, its successors' borders included.
        origins: where each layer's region begins, relative to the tile's first input pixel.
        channels: of each layer's input as it lies in memory; depths, steps: of each layer's reduction.
        weights: where each layer's weight begins; buffers: where its result does in scratch (the last has none).
        scratch: elements of a program.
        registers: as in `ConvConfig`.
    """

    tile: Pair
    regions: tuple[Pair, ...]
    origins: tuple[Pair, ...]
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    steps: tuple[int, ...]
    weights: tuple[int, ...]
    buffers: tuple[int, ...]
    scratch: int
    block_m: int = 64
    warps: int = 8
    stages: int = 3
    registers: int = 0

    def __str__(self) -> str:
        return (
            f"ChainConfig(tile={self.tile}, layers={len(self.regions)}, scratch={self.scratch}, "
            f"block_m={self.block_m}, warps={self.warps}, stages={self.stages})"
        )


def joins(layer: Layer) -> bool:
    """Tell whether a layer may be part of a chain: one phase, one group, few columns, few channels on one side."""
    columns = layer.weight.shape[1]
    few = max(layer.inputs, columns) <= MOST_COLUMNS and min(layer.inputs, columns) <= FEW_CHANNELS
    return few and layer.phases == ONE and layer.groups == 1


def is_inner(layer: Layer) -> bool:
    """Tell whether a layer may have a successor in a chain: its result is an image of its input's size."""
    keeps = all(axis.length(size) == size for axis in layer.axes for size in (64, 65))
    return joins(layer) and keeps and layer.stride == ONE and layer.spread == ONE


def pick_config(
    links: Sequence[Link], dtype: torch.dtype, *, target: int = 90, interpreted: bool = False
) -> ChainConfig | None:
    """Choose the largest tile whose intermediates fit a program's scratch; None where none does.

    Args:
        target: compute capability, as 80, 90, 100; tile and scratch are the same for all.
        interpreted: Triton's interpreter runs it, whose steps cost the same for few pixels as for many.
    """
    found = (_configured(links, tile, dtype) for tile in TILES)
    config = next((each for each in found if each.scratch * dtype.itemsize <= MOST_SCRATCH_BYTES), None)
    if config is not None and interpreted:
        most = max(map(prod, config.regions))
        return replace(config, block_m=min(1 << (most - 1).bit_length(), 512))
    if config is not None and target < 90:
        # Accumulators and addresses share the registers that wgmma leaves free. Stores and residuals of a wide last
        # layer fill what 4 warps have; of the many layers of a long chain the compiler keeps too much alive for 8.
        return replace(config, block_m=32, warps=8 if len(links) <= SHORT else 4)
    if config is not None and target >= 100:
        return replace(config, registers=MOST_REGISTERS)
    return config


def pays(links: Sequence[Link], dtype: torch.dtype) -> bool:
    """Tell whether a chain takes less time than its layers one by one, by a model that is yet to be measured.

    Intermediates that stay out of device memory save a write and a read; borders computed twice cost products. Single
    precision is bound by its products alone.
    """
    if not 2 <= len(links) <= MOST_LAYERS or dtype == torch.float32:
        return False
    config = pick_config(links, dtype)
    if config is None:
        return False
    pixels = prod(config.tile) * prod(links[-1].stride)
    saved = sum(2 * link.columns * dtype.itemsize for link in links[:-1])
    again = 0.0
    for link, region, depth, steps in zip(links, config.regions, config.depths, config.steps, strict=True):
        blocks = -(-prod(region) // config.block_m) * config.block_m
        alone = pixels / prod(link.stride)
        again += 2 * (blocks - alone) / pixels * depth * steps * link.block_n
    return again <= RATIO * saved


def _configured(links: Sequence[Link], tile: Pair, dtype: torch.dtype) -> ChainConfig:
    last = links[-1].stride
    tile = (max(tile[0] // last[0], 1), max(tile[1] // last[1], 1))
    regions, origins = [tile], [(0, 0)]
    for link in reversed(links[1:]):
        (rows, columns), (y, x) = regions[0], origins[0]
        (sh, sw), (dh, dw), (kh, kw) = link.stride, link.dilation, link.kernel
        regions.insert(0, ((rows - 1) * sh + dh * (kh - 1) + 1, (columns - 1) * sw + dw * (kw - 1) + 1))
        # Only the last layer has a stride, and its grid position 0 is the tile's origin.
        origins.insert(0, (y + link.start[0], x + link.start[1]))
    channels = (links[0].inputs, *(link.channels for link in links[:-1]))
    # Not `list[int]()`, which torch.compile can't trace.
    depths: list[int] = []
    steps: list[int] = []
    weights: list[int] = []
    used = 0
    for link, inputs in zip(links, channels, strict=True):
        terms = prod(link.kernel) * inputs
        depth = 16 if dtype == torch.float32 else _depth(inputs, terms)
        depths.append(depth)
        steps.append(-(-terms // depth))
        weights.append(used)
        used += link.block_n * depth * steps[-1]
    sizes = [prod(region) * link.channels for region, link in zip(regions[:-1], links[:-1], strict=True)]
    even, odd = max(sizes[::2]), max(sizes[1::2], default=0)
    buffers = tuple(0 if i % 2 == 0 else even for i in range(len(links)))
    warps, stages = (8, 2) if dtype == torch.float32 else (8, 3)
    return ChainConfig(
        tile, tuple(regions), tuple(origins), channels, tuple(depths), tuple(steps), tuple(weights), buffers,
        even + odd, warps=warps, stages=stages,
    )  # fmt: skip


def _depth(channels: int, terms: int) -> int:
    """Give the steps of a half-precision reduction: long ones, but no channel of a scratch pixel may be split apart."""
    if channels < LEAST_COLUMNS or channels % LEAST_COLUMNS:
        return 32 if terms > LEAST_COLUMNS else LEAST_COLUMNS
    return next(depth for depth in (64, 32, 16) if channels % depth == 0)
