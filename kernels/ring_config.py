"""When the ring kernel runs a layer, and with how much shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from tilefuse.kernels.epilogue import Epilogue, Kind
from tilefuse.kernels.layer import ONE, Layer
from tilefuse.kernels.toolchain import interpreted, triton

# Compute capabilities on which a GPU has shown the kernel to be right and faster than tiles by TMA (`benchmarks.gpu`,
# rows "ring", "ring by strips" and "ring by tiles"): none has yet, so nothing chooses it.
TARGETS: frozenset[int] = frozenset()
KINDS: tuple[Kind, ...] = ("none", "relu", "leaky_relu", "prelu", "silu")
CHANNELS = 64
# Of one program on sm_90.
SHARED_BYTES = 232_448


@dataclass(frozen=True)
class RingConfig:
    """How the ring kernel runs a layer.

    Attributes:
        strip: pixels of a row that a program makes; rows: rows it makes from top to bottom.
        ring: input rows in shared memory, three of which are in use.
    """

    strip: int = 64
    rows: int = 60
    ring: int = 5
    warps: int = 4

    def shared_bytes(self, layer: Layer) -> int:
        """Bytes of shared memory: three shifted copies of the ring's rows, nine taps, one row of the result."""
        row = self.strip * layer.inputs
        elements = 3 * self.ring * row + 9 * layer.inputs * layer.outputs + self.strip * layer.outputs
        return elements * layer.weight.element_size() + 8 * (self.ring + 1)


def pick_config(layer: Layer) -> RingConfig:
    """Choose the configuration of a layer that `takes_ring`: as many rows ahead as fit beside its weights."""
    rings = (RingConfig(ring=rows) for rows in (6, 5, 4))
    return next(config for config in rings if config.shared_bytes(layer) <= SHARED_BYTES)


def takes_ring(layer: Layer, epilogue: Epilogue, x_dtype: torch.dtype, out_dtype: torch.dtype) -> bool:
    """Tell whether the kernel can compute a layer: 3x3, 64 to 64 channels, a half type, bias and activation alone."""
    dtype = layer.weight.dtype
    same = (layer.stride, layer.dilation, layer.phases, layer.spread) == (ONE, ONE, ONE, ONE) and layer.groups == 1
    wide = (layer.inputs, layer.outputs, layer.kernel) == (CHANNELS, CHANNELS, (3, 3))
    halves = dtype in (torch.float16, torch.bfloat16) and x_dtype == out_dtype == dtype
    plain = (
        not epilogue.residuals
        and epilogue.activation in KINDS
        and not epilogue.is_clamped
        and (epilogue.output_scale, epilogue.output_shift, epilogue.shuffle) == (1.0, 0.0, 1)
    )
    return same and wide and halves and plain


def chooses_ring(
    layer: Layer, epilogue: Epilogue, x_dtype: torch.dtype, out_dtype: torch.dtype, target: int
) -> bool:  # fmt: skip
    """Tell whether a layer is run by the kernel rather than by TMA tiles: where that is proven and Gluon is there."""
    proven = target in TARGETS and ring_missing(target) is None
    return proven and takes_ring(layer, epilogue, x_dtype, out_dtype)


def ring_missing(target: int) -> str | None:
    """Give the reason why the kernel can't run for a compute capability, or None if it can."""
    if triton is None or find_spec("triton.experimental.gluon.nvidia.hopper") is None:
        return "this Triton has no Gluon for Hopper"
    if interpreted():
        return "Triton's interpreter has no Gluon"
    if target != 90:
        return f"wgmma exists on compute capability 9.0, not on {target / 10}"
    return None
