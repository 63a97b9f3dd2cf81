"""Triton, if it is installed: what the kernel files import in its stead, and why a machine can't run them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.planning import current

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

Kernel = Any
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
IMAGES = (torch.uint8, torch.uint16)
OLDEST = (3, 6)


def jit(function: Callable[..., Any]) -> Kernel:
    """Decorate a kernel with `triton.jit`; without Triton keep the plain function, which no launcher ever calls."""
    return function if triton is None else triton.jit(function)


def interpreted() -> bool:
    """Tell whether Triton runs kernels in its interpreter: the environment had TRITON_INTERPRET=1 at its import."""
    return triton is not None and type(tl.zeros).__name__ == "InterpretedFunction"


def emulated(device: torch.device | str) -> bool:
    """Tell whether kernels on a device are interpreted; without values they are planned for the compiler, always."""
    return interpreted() and torch.device(device).type != "meta"


def unavailable(device: torch.device | str) -> str | None:
    """Give the reason why kernels can't run on a device, or None if they can."""
    device = torch.device(device)
    if triton is None:
        return "Triton is not installed; install tilefuse[gpu]"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST:
        return f"Triton {triton.__version__} is too old; 3.6 or newer is needed"
    if device.type == "meta" and current() is not None:
        return None
    if interpreted():
        return None if device.type == "cpu" else "TRITON_INTERPRET is set, and the interpreter takes CPU tensors only"
    if device.type != "cuda":
        asked = "1" if os.environ.get("TRITON_INTERPRET") == "1" else "unset"
        hint = "set it before Triton is imported" if asked == "1" else "set it to 1 for Triton's slow interpreter"
        return f"the kernels need a CUDA device, not {device}; TRITON_INTERPRET is {asked}, {hint}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the kernels need a GPU of compute capability 8.0 or newer"
    return None


def target(device: torch.device | str) -> int:
    """Give the compute capability that configurations are picked for, as 80, 89, 90 …; the interpreter takes 90's."""
    device, planned = torch.device(device), current()
    if device.type == "meta" and planned is not None:
        return planned.capability
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a tensor of floats as the kernels do: what float16 can't hold becomes NaN, so that it is seen."""
    made = value.to(dtype)
    return made * 0 + made if dtype == torch.float16 else made


def require_runnable(x: Tensor) -> None:
    """Raise BackendError where kernels can't run on the device of `x`."""
    reason = unavailable(x.device)
    if reason is not None:
        raise BackendError(f"Triton kernels can't run on tensor x: {reason}")


def require(condition: bool, name: str, given: object, accepted: str) -> None:
    """Raise BackendError naming the argument, what was given and what is accepted, unless the condition holds."""
    if not condition:
        raise BackendError(f"{name} is {given}; accepted: {accepted}")


def require_tensor(name: str, tensor: object) -> None:
    """Raise BackendError unless an argument is a torch tensor with strides."""
    require(isinstance(tensor, Tensor), name, f"of type {type(tensor).__name__}", "a torch tensor")
    layout = cast(Tensor, tensor).layout
    require(layout == torch.strided, name, f"of layout {layout}", "torch.strided")


def require_nhwc(name: str, tensor: Tensor, like: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check one NHWC tensor: four axes, contiguous channels, a dtype of those listed, the device of `like`."""
    require_tensor(name, tensor)
    require(tensor.ndim == 4, name, f"of shape {tuple(tensor.shape)}", "4 axes [N, H, W, C]")
    require(tensor.dtype in dtypes, name, tensor.dtype, ", ".join(map(str, dtypes)))
    require(tensor.device == like.device, name, f"on {tensor.device}", f"the device of x, {like.device}")
    dense = tensor.shape[3] == 1 or tensor.stride(3) == 1
    require(dense, name, f"of strides {tensor.stride()}", "NHWC with neighbouring channels (stride 1)")


def tensor_descriptor(tensor: Tensor, block: list[int]) -> object:
    """Describe a tensor to the tensor memory accelerator; loads outside of it give zero."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(tensor, list(tensor.shape), descriptor_strides(tensor), block)


def descriptor_strides(tensor: Tensor) -> list[int]:
    """Give a tensor's strides, whole rows where there is one element and torch's stride may be anything."""
    row = tensor.shape[-1] * tensor.element_size()
    whole = -(-row // 16) * 16 // tensor.element_size()
    outer = zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    return [*(whole if size == 1 else stride for size, stride in outer), 1]
