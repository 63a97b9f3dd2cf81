"""What the tests of the multiplying kernels share: random tensors, poisoned buffers, comparison with the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tilefuse.kernels.convolve import plan_launch
from tilefuse.kernels.epilogue import Epilogue, Prologue
from tilefuse.kernels.layer import Layer
from tilefuse.kernels.toolchain import interpreted

DEVICE = "cpu" if interpreted() else "cuda"
# Rounding of the result, and in bfloat16 and float16 of sums whose order differs from the reference's.
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.uint8: 0.0, torch.uint16: 0.0}
MARGIN = 3


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Draw a tensor; integers over their whole range."""
    generator = torch.Generator().manual_seed(seed)
    if dtype in (torch.uint8, torch.uint16):
        top = torch.iinfo(dtype).max
        return torch.randint(0, top + 1, shape, generator=generator, dtype=torch.int32).to(dtype).to(DEVICE)
    return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(DEVICE)


def weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Draw a weight whose sums have the size of one input."""
    fan = shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1)
    return draw(*shape, dtype=dtype, seed=seed, scale=fan**-0.5)


def compare(
    kernel: Callable[..., Tensor], reference: Callable[..., Tensor], x: Tensor, w: Tensor, **options: Any
) -> None:
    """Compare a launcher with its reference, into a new tensor and into a slice of a poisoned wider buffer."""
    expected = reference(x, w, **options)
    made = kernel(x, w, **options)
    assert made.dtype == expected.dtype
    assert_near(made, expected)
    epilogue = replace(options.pop("epilogue", None) or Epilogue(), channel_offset=MARGIN)
    size = (*expected.shape[:3], expected.shape[3] + 2 * MARGIN)
    poison = torch.nan if expected.dtype.is_floating_point else 77
    buffer = torch.full(size, poison, device=x.device).to(expected.dtype)
    place = kernel(x, w, **options, epilogue=epilogue, out=buffer)
    assert_near(place, expected)
    assert place.data_ptr() == buffer[..., MARGIN:].data_ptr()
    around = torch.cat((buffer[..., :MARGIN], buffer[..., MARGIN + expected.shape[3] :]), 3).double()
    assert (around.isnan() if expected.dtype.is_floating_point else around == poison).all()


def assert_near(made: Tensor, expected: Tensor) -> None:
    """Bound the largest error relative to the largest value, and the rms error relative to the rms value."""
    assert made.shape == expected.shape
    a, b = made.double(), expected.double()
    assert torch.isfinite(a).all()
    limit = ROUNDING[expected.dtype]
    largest, rms = (a - b).abs().max().item(), (a - b).square().mean().sqrt().item()
    scale, size = b.abs().max().item(), b.square().mean().sqrt().item()
    print(f"max {largest:.3e} of {scale:.3e}, rms {rms:.3e} of {size:.3e}")
    assert largest <= 2 * limit * scale
    assert rms <= limit * size


def run_on(capability: int, x: Tensor, layer: Layer, epilogue: Epilogue, prologue: Prologue | None = None) -> Tensor:
    """Run a layer with the configuration of another GPU."""
    size = layer.output_size(x.shape[1], x.shape[2])
    out = torch.full((x.shape[0], *size, layer.outputs), torch.nan, device=x.device)
    out = out.to(epilogue.result_dtype(x, layer.weight))
    launch = plan_launch(x, layer, prologue or Prologue(), epilogue, out, capability=capability, emulated=interpreted())
    launch.run()
    return out
