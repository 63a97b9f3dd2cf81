"""What the tests of the kernels share: images in awkward memory, poisoned results, what every launcher must pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tilefuse.errors import BackendError

# [N, H, W, C]: one pixel, two, three, primes, one row of 63, one column.
SHAPES = ((1, 1, 1, 1), (1, 2, 2, 3), (2, 3, 17, 4), (1, 63, 1, 5), (1, 1, 63, 2))
Launcher = Callable[..., Tensor]


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw a dense image."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def awkward(x: Tensor) -> list[Tensor]:
    """Give the same image in other memory: a slice of more channels, NCHW planes, every second column, axes swapped."""
    n, h, w, c = x.shape
    wide = torch.full((n, h, w, c + 3), torch.nan, dtype=x.dtype)
    wide[..., 2 : 2 + c] = x
    apart = torch.full((n, h, 2 * w, c), torch.nan, dtype=x.dtype)
    apart[:, :, ::2] = x
    planes = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    return [wide[..., 2 : 2 + c], planes, apart[:, :, ::2], x.transpose(0, 2).contiguous().transpose(0, 2)]


def poisoned(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Give a buffer full of NaN and the slice of its channels that a launcher is to fill."""
    n, h, w, c = shape
    buffer = torch.full((n, h, w, c + 4), torch.nan, dtype=dtype)
    return buffer, buffer[..., 3 : 3 + c]


def check_launcher(launch: Launcher, reference: Launcher, x: Tensor, *, max_abs: float = 0.0) -> None:
    """Compare with the reference in every memory layout, into a new result and into a slice of a poisoned buffer."""
    expected = reference(x)
    for position, given in enumerate((x, *awkward(x))):
        buffer, out = poisoned(tuple(expected.shape), expected.dtype)
        if position == 0:
            made = launch(given)
            assert made.dtype == expected.dtype
        else:
            made = launch(given, out=out)
            assert made is out
            assert buffer[..., :3].isnan().all()
            assert buffer[..., 3 + expected.shape[3] :].isnan().all()
        assert made.shape == expected.shape
        difference = (made.double() - expected.double()).abs().max().item()
        assert difference <= max_abs, f"max error {difference:.3e} > {max_abs:.1e}"


def check_refusals(kernel: str, launch: Launcher, x: Tensor) -> None:
    """A bad tensor is named before anything runs, and no images give no images."""
    with pytest.raises(BackendError, match=rf"{kernel}: .* float64; float16, bfloat16, float32 are accepted"):
        launch(x.double())
    with pytest.raises(BackendError, match=rf"{kernel}: .* the shape .*; \[N, H, W, C\] is accepted"):
        launch(x[0])
    with pytest.raises(BackendError, match=rf"{kernel}: .* of type ndarray; a torch tensor with strides is accepted"):
        launch(x.numpy())
    with pytest.raises(BackendError, match=rf"{kernel}: .* is torch.sparse_coo; a torch tensor with strides"):
        launch(x.to_sparse())
    with pytest.raises(BackendError, match=rf"{kernel}: .* lies on meta"):
        launch(x.to("meta"))
    with pytest.raises(BackendError, match=rf"{kernel}: .* bfloat16, which Triton's interpreter rounds wrongly"):
        launch(x.bfloat16())
    made = launch(x)
    with pytest.raises(BackendError, match=r"out has the shape .*; .* is accepted"):
        launch(x, out=torch.empty(*made.shape[:3], made.shape[3] + 1))
    none = launch(x[:0])
    assert none.shape == (0, *made.shape[1:])
