"""What every launcher settles before it launches: which tensors it takes, on which device, in which tile of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.aliasing import has_memory, require_apart, require_distinct
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.toolchain import FLOATS, Kernel, interpreted, unavailable

# Read once, as `triton.jit` does: a kernel is interpreted for good or compiled for good.
INTERPRETED: bool = interpreted()

# Of a CUDA grid's second axis.
MOST_SIDEWAYS = 65535
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
        """Programs that cover `rows` x `columns` elements.

        Raises:
            BackendError: more columns than a device takes programs side by side.
        """
        if columns > MOST_SIDEWAYS * self.columns:
            raise BackendError(
                f"a row of the result has {columns} elements (width times channels); at most "
                f"{MOST_SIDEWAYS * self.columns} are accepted"
            )
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
    _check_kind(kernel, name, x)
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
    _check_kind(kernel, name, x)
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
    kernel: str,
    x: Tensor,
    shape: tuple[int, int, int, int],
    out: Tensor | None,
    dtype: torch.dtype | None = None,
    *,
    in_place: bool = False,
) -> Tensor:
    """Give the tensor a launcher writes: `out`, checked, or a new dense one of `x`'s type.

    Args:
        in_place: the caller checks by `check_place`.

    Raises:
        BackendError: `out` has another shape, shares memory with `x`, or is no tensor a kernel writes.
    """
    if out is not None:
        _check_kind(kernel, "out", out)
    if out is None:
        return torch.empty(shape, dtype=dtype or x.dtype, device=x.device)
    if tuple(out.shape) != shape:
        raise BackendError(f"{kernel}: out has the shape {list(out.shape)}; {list(shape)} is accepted")
    check_image(kernel, "out", out, like=x)
    require_distinct(out, f"{kernel}: out")
    if not in_place:
        require_apart(out, x, f"{kernel}: out", "x")
    return out


def check_place(kernel: str, out: Tensor, x: Tensor, name: str) -> None:
    """Refuse memory that what is written element by element shares with what is read, unless both are the same view.

    Raises:
        BackendError: they share some.
    """
    same = (out.dtype, out.shape, out.stride()) == (x.dtype, x.shape, x.stride())
    if has_memory(out) and not (same and out.data_ptr() == x.data_ptr()):
        require_apart(out, x, f"{kernel}: out", name)


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


def _check_kind(kernel: str, name: str, x: object) -> None:
    if not isinstance(x, Tensor) or x.layout != torch.strided:
        given = x.layout if isinstance(x, Tensor) else f"of type {type(x).__name__}"
        raise BackendError(f"{kernel}: {name} is {given}; a torch tensor with strides is accepted")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
