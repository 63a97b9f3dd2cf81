"""What every launcher settles before it launches: which tensors it takes, on which device, in which tile of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.toolchain import FLOATS, Kernel, interpreted, unavailable

# Read once, as `triton.jit` does: a kernel is interpreted for good or compiled for good.
INTERPRETED: bool = interpreted()

_GPU_ELEMENTS = 1024
# A program costs the interpreter a millisecond whatever its size.
_INTERPRETED_ELEMENTS = 1 << 15


@dataclass(frozen=True)
class RowTile:
    """Part of an image that one program makes: `rows` rows of `columns` elements (pixels times channels)."""

    rows: int
    columns: int
    num_warps: int = 4

    def grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Programs that cover `rows` x `columns` elements."""
        return -(-rows // self.rows), -(-columns // self.columns)


def power_of_two(count: int) -> int:
    """Smallest power of two that is not less than `count`."""
    return 1 << max(count - 1, 0).bit_length()


def row_tile(rows: int, columns: int, *, interpreted: bool = False) -> RowTile:
    """Choose the tile for images of `rows` rows (all images of the batch) of `columns` elements each."""
    elements = _INTERPRETED_ELEMENTS if interpreted else _GPU_ELEMENTS
    wide = min(power_of_two(columns), elements)
    return RowTile(min(power_of_two(rows), elements // wide), wide)


def check_image(
    kernel: str, name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATS, *, like: Tensor | None = None
) -> None:
    """Refuse what a kernel on images [N, H, W, C] can't address; any strides are taken.

    Raises:
        BackendError: another rank, type or device, or not on the device of `like`.
    """
    if x.ndim != 4:
        raise BackendError(f"{kernel}: {name} has the shape {list(x.shape)}; [N, H, W, C] is accepted")
    check_tensor(kernel, name, x, dtypes, like=like)


def check_tensor(
    kernel: str, name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] = FLOATS, *, like: Tensor | None = None
) -> None:
    """Refuse a type or a device that a kernel doesn't take.

    Raises:
        BackendError: it is one.
    """
    if x.dtype not in dtypes:
        raise BackendError(f"{kernel}: {name} is {_plain(x.dtype)}; {', '.join(map(_plain, dtypes))} are accepted")
    if INTERPRETED and x.dtype is torch.bfloat16:
        raise BackendError(f"{kernel}: {name} is bfloat16, which Triton's interpreter rounds wrongly; use float32")
    reason = unavailable(x.device)
    if reason is not None:
        raise BackendError(f"{kernel}: {name} lies on {x.device}: {reason}")
    if like is not None and x.device != like.device:
        raise BackendError(f"{kernel}: {name} lies on {x.device}; {like.device} is accepted, where the input lies")


def result(
    kernel: str, x: Tensor, shape: tuple[int, int, int, int], out: Tensor | None, dtype: torch.dtype | None = None
) -> Tensor:
    """Give the tensor a launcher writes: `out`, checked, or a new dense one of `x`'s type.

    Raises:
        BackendError: `out` has another shape, or is no tensor a kernel writes.
    """
    if out is None:
        return torch.empty(shape, dtype=dtype or x.dtype, device=x.device)
    if tuple(out.shape) != shape:
        raise BackendError(f"{kernel}: out has the shape {list(out.shape)}; {list(shape)} is accepted")
    check_image(kernel, "out", out, like=x)
    return out


class Warps(Protocol):
    """A configuration, as far as a launch needs it."""

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        ...


def bind(name: str, kernel: Kernel, grid: tuple[int, ...], config: Warps, *values: object) -> Launch:
    """Name the values of a kernel's parameters, in their order."""
    arguments = dict(zip(kernel.arg_names, values, strict=True))
    return Launch(name, kernel, grid, arguments, config.num_warps, config=config)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
