"""Tensors that share memory: programs run in any order, so what they write must be nobody else's to read."""

from __future__ import annotations

import torch
from torch import Tensor

from tilefuse.kernels.toolchain import require


def has_memory(x: Tensor) -> bool:
    """Tell whether a tensor has an address: neither on meta, which fake ones are underneath, nor while torch traces."""
    return not torch.compiler.is_compiling() and x.untyped_storage().device.type != "meta"


def require_apart(out: Tensor, read: Tensor | None, written: str, name: str) -> None:
    """Raise BackendError where a tensor that is read may share an element with one that is written.

    Channels, columns, rows or images of one buffer that lie between each other do not.

    Args:
        written, name: of the two tensors, as the caller knows them.
    """
    if read is not None and has_memory(out) and has_memory(read):
        require(not overlaps(out, read), written, f"memory of {name} too", "memory of its own")


def require_distinct(out: Tensor, written: str) -> None:
    """Raise BackendError where elements of a tensor that is written lie in one place, as those of an expanded one."""
    if has_memory(out):
        steps = f"of shape {tuple(out.shape)} and strides {tuple(out.stride())}"
        require(not repeats(out), written, steps, "elements that share no memory")


def overlaps(a: Tensor, b: Tensor) -> bool:
    """Tell whether an element of `a` may lie where one of `b` does; False is certain."""
    if a.numel() == 0 or b.numel() == 0 or a.device != b.device:
        return False
    (start_a, steps_a), (start_b, steps_b) = _layout(a), _layout(b)
    if start_a + _extent(a, steps_a) <= start_b or start_b + _extent(b, steps_b) <= start_a:
        return False
    return not any(
        _apart(start_b - start_a, pitch, _within(a, steps_a, pitch), _within(b, steps_b, pitch))
        for pitch in {step for _, step in (*steps_a, *steps_b) if step > 0}
    )


def repeats(x: Tensor) -> bool:
    """Tell whether two elements of a tensor may lie in one place; False is certain."""
    if x.numel() == 0:
        return False
    reach = x.element_size()
    for size, step in sorted(_layout(x)[1], key=lambda each: each[1]):
        if step < reach:
            return True
        reach += (size - 1) * step
    return False


def _layout(x: Tensor) -> tuple[int, list[tuple[int, int]]]:
    """Give the address, and size and step in bytes of every axis with more than one position."""
    steps = [(size, stride * x.element_size()) for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]
    return x.data_ptr(), steps


def _extent(x: Tensor, steps: list[tuple[int, int]]) -> int:
    """Bytes from the first element to the end of the last."""
    return x.element_size() + sum((size - 1) * step for size, step in steps)


def _within(x: Tensor, steps: list[tuple[int, int]], pitch: int) -> int | None:
    """Bytes of every `pitch` that a tensor occupies, in one run; None where it can't be told."""
    if any(step >= pitch and step % pitch for _, step in steps):
        return None
    return _extent(x, [(size, step) for size, step in steps if step < pitch])


def _apart(distance: int, pitch: int, first: int | None, second: int | None) -> bool:
    """Tell whether two runs of bytes, repeated at one pitch, never meet; the second begins `distance` behind."""
    if first is None or second is None:
        return False
    return distance % pitch >= first and -distance % pitch >= second
