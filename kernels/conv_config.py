"""Configurations of the convolution kernels: a pure function of the layer, never of the image's size or the batch.

So every window, stripe and batch of a layer runs the same tiles in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from tilefuse.kernels.layer import LEAST_COLUMNS, ONE, Layer
from tilefuse.kernels.toolchain import IMAGES

HALVES = (torch.float16, torch.bfloat16)
# Wider layers stand at the stems of generators, on images smaller than a tile.
WIDEST_TMA = 256
# What a thread can have. The compiler spills on sm_100 with as few as 40 in use, unless it is told of this.
MOST_REGISTERS = 255
# Input channels from which a tap's are a step of the reduction, loaded as whole rows of 16 bytes and more.
FEWEST_ROWS = 16
# Of an H100 or H200: a strip's programs are one to each.
MULTIPROCESSORS = 132
# Rows of a strip. One alone would load three, and be compiled as a constant.
LEAST_ROWS, MOST_ROWS = 2, 128


@dataclass(frozen=True)
class ConvConfig:
    """How a layer is run.

    Attributes:
        path: "tma", "rows" and "pointer" are matrix products, "depthwise" is a sum.
        tile: height and width of the pixel tile ("tma"), or (1, pixels); "rows" streams down a strip of that width.
        block_n, block_k: columns of a program, and steps of its reduction.
        flat: taps and channels form one index of the reduction (few channels).
        swap: channels, not pixels, are the rows of the matrix instruction.
        registers: most of a thread, where the compiler would spill to keep more programs on a multiprocessor.
    """

    path: Literal["tma", "rows", "pointer", "depthwise"]
    tile: tuple[int, int]
    block_n: int
    block_k: int
    flat: bool = False
    swap: bool = False
    warps: int = 4
    stages: int = 3
    registers: int = 0

    @property
    def block_m(self) -> int:
        """Pixels of a program."""
        return self.tile[0] * self.tile[1]


def pick_config(
    layer: Layer, x_dtype: torch.dtype, *, affine: bool, target: int, residuals: int = 0
) -> ConvConfig:  # fmt: skip
    """Choose the configuration of a layer.

    Args:
        x_dtype: the input's type; integers are converted on the way in.
        affine: whether a prologue changes the input, which a TMA load can't.
        target: compute capability, as 80, 90, 100.
        residuals: of the epilogue, an enlarged one counting twice.
    """
    dtype, inputs = layer.weight.dtype, layer.inputs
    columns = layer.weight.shape[1] // layer.groups
    block_k = reduction_block(layer)
    if inputs == 1 and layer.groups > 1 and layer.spread == (1, 1):
        return ConvConfig("depthwise", (1, 64), min(power_of_two(layer.weight.shape[1]), 64), 1, stages=1)
    if dtype == torch.float32:
        block_n = min(power_of_two(max(columns, 16)), 32 if affine else 64)
        # A stride's addresses are a few registers too many for three programs a multiprocessor; two have room.
        registers = 0 if layer.stride == ONE else 128
        return ConvConfig("pointer", (1, 64), block_n, block_k, is_flat(layer), warps=8, stages=2, registers=registers)
    registers = MOST_REGISTERS if target >= 100 else 0
    # A few outputs at each of many positions: their addresses take the registers of half the columns.
    widest = 64 if layer.spread != (1, 1) and layer.outputs < FEWEST_ROWS else 128
    if target >= 90 and x_dtype in HALVES and not affine and takes_tma(layer):
        # Where columns do not fill their blocks, the addresses of a residual would spill.
        if target < 100 and streams(layer) and (columns % 32 == 0 or not residuals):
            # Those of two residuals take the registers of half the columns.
            swap = columns > 32 and residuals < 2
            return ConvConfig("rows", (1, 256), 64 if swap else 32, block_k, swap=swap, warps=8, stages=3)
        if min(columns, widest) >= 128:
            # A pixel shuffle's stores spill only where the compiler is told of more than it chooses.
            most = registers if layer.spread == ONE else 0
            return ConvConfig("tma", (8, 16), 128, block_k, warps=8, stages=3, registers=most)
        # A pixel shuffle's addresses take the registers that a wider tile would.
        if columns > 32 and layer.spread == (1, 1):
            # With two stages a second program fits on the multiprocessor, which multiplies while the first one stores.
            return ConvConfig("tma", (16, 16), 64, block_k, swap=True, warps=8, stages=2)
        block_n = min(power_of_two(max(columns, 16)), widest)
        return ConvConfig("tma", (8, 16), block_n, block_k, warps=8 if block_n > 32 else 4, stages=3)
    block_n = min(power_of_two(max(columns, 16)), widest)
    # Before sm_90 accumulators and addresses share the registers that wgmma leaves free: a third step, or more pixels,
    # would spill.
    stages = 2 if x_dtype in IMAGES or (target < 90 and is_flat(layer) and block_n == 16) else 3
    pixels = 64 if target < 90 and block_n == 64 else 128
    # Gathered elements have an address each, those of a step that runs past the channels a mask.
    crowded = is_flat(layer) or inputs % block_k != 0
    # There 4 warps of 16 columns spill where these are a pixel shuffle's.
    warps = 8 if block_n == 128 or crowded or (target < 90 and block_n == 16) else 4
    return ConvConfig(
        "pointer", (1, pixels), block_n, block_k, is_flat(layer), warps=warps, stages=stages, registers=registers
    )


def is_flat(layer: Layer) -> bool:
    """Tell whether a layer has so few input channels that taps share a step of the reduction."""
    return layer.inputs < FEWEST_ROWS


def reduction_block(layer: Layer) -> int:
    """Give BLOCK_K, the same for every path and tile, so that sums of a layer always run in one order."""
    depth = layer.inputs * layer.kernel[0] * layer.kernel[1] if is_flat(layer) else layer.inputs
    scattered = is_flat(layer) or layer.inputs * layer.weight.element_size() % 16 != 0
    if layer.weight.dtype == torch.float32:
        return 16
    return min(max(power_of_two(depth), 16), 32 if scattered else 64)


def takes_tma(layer: Layer) -> bool:
    """Tell whether descriptors can address a layer: rows of 16 bytes, stride 1, one group."""
    rows = layer.inputs * layer.weight.element_size() % 16 == 0
    return rows and FEWEST_ROWS <= layer.inputs <= WIDEST_TMA and layer.stride == (1, 1) and layer.groups == 1


def streams(layer: Layer) -> bool:
    """Tell whether a layer is run down strips of pixels: three rows of taps, one position written for each read."""
    plain = layer.dilation[0] == 1 and layer.phases == ONE and layer.spread == ONE
    columns = layer.weight.shape[1]
    return plain and layer.kernel[0] == 3 and columns > LEAST_COLUMNS and columns % LEAST_COLUMNS == 0


def band_rows(height: int, strips: int, *, interpreted: bool = False) -> int:
    """Choose how many rows a program streams down: few enough to fill the multiprocessors, many for its first two.

    Results don't depend on it. Where the interpreter runs it, steps are few rather than side by side.
    """
    most = max(min(height, MOST_ROWS), LEAST_ROWS)
    if interpreted:
        return most
    # Waves of programs, each as long as a program's rows and the two around them.
    each = range(LEAST_ROWS, most + 1)
    return min(each, key=lambda rows: -(-strips * -(-height // rows) // MULTIPROCESSORS) * (rows + 2))


def power_of_two(count: int) -> int:
    """Round up to a power of two."""
    return 1 << (count - 1).bit_length()
