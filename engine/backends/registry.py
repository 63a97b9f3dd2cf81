"""The backends by name, in order of preference.

The order is stated, not measured, for a quiet machine. On two AVX-512 cores SRVGGNetCompact 64x16 at 128x128 took 44
ms in ncnn (Winograd), 91 in OpenVINO, 96 in torch and 122 in ONNX Runtime; ESPCN at 256x256 took 16 ms in all three
engines and 38 in torch. Where other programs share the cores, OpenVINO and ONNX Runtime lose least: the threads of
ncnn and torch wait for each other after every layer. Inductor matches OpenVINO, but compiles for many seconds: it
comes last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

from tilefuse.backends.base import Backend, Precision
from tilefuse.backends.inductor import Inductor
from tilefuse.backends.ncnn import Ncnn
from tilefuse.backends.onnxruntime import OnnxRuntime
from tilefuse.backends.openvino import OpenVino
from tilefuse.backends.torch_eager import TorchEager
from tilefuse.backends.triton_fused import TritonFused
from tilefuse.errors import UsageError
from tilefuse.model import Model

_ORDER: tuple[Backend, ...] = (
    Ncnn(),
    OpenVino(),
    OnnxRuntime(),
    TorchEager(),
    Inductor(),
    TritonFused(),
)
BACKENDS: Mapping[str, Backend] = MappingProxyType({backend.name: backend for backend in _ORDER})

# cuDNN through torch needs no second copy of the weights and no further library on a CUDA device.
_CUDA_FIRST = ("torch_eager", "inductor", "triton_fused")


def get(name: str) -> Backend:
    """Look a backend up.

    Raises:
        UsageError: no backend has that name.
    """
    if name not in BACKENDS:
        raise UsageError(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def automatic() -> tuple[str, ...]:
    """Names that `auto` may choose from: Triton's interpreter serves on a CPU, but only who names it wants it."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return tuple(name for name in BACKENDS if not (interpreted and name == "triton_fused"))


def notes(name: str, model: Model) -> tuple[str, ...]:
    """What a user should know of how a backend serves a model: ops without a kernel, an interpreter that is slow."""
    backend = get(name)
    return backend.notes(model) if isinstance(backend, TritonFused) else ()


def preference(model: Model, device: str, precision: Precision) -> list[tuple[str, str | None]]:
    """List every backend in order of preference, with the reason it can't serve, or None."""
    first = _CUDA_FIRST if device.startswith("cuda") else ()
    names = [*first, *(name for name in BACKENDS if name not in first)]
    return [(n, BACKENDS[n].available() or BACKENDS[n].refusal(model, device, precision)) for n in names]
