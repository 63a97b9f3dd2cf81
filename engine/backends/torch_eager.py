"""torch, op by op: serves every graph, and any module that could not be captured."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from tilefuse.backends.base import Precision, Session
from tilefuse.backends.library import check_inputs, failure, refuse_compile, require
from tilefuse.backends.precision import exact_fp32
from tilefuse.errors import BackendError
from tilefuse.graph import Graph, Shape
from tilefuse.model import Model

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEager:
    """Evaluates the graph in channels_last, or calls the original module, on the CPU or a CUDA device.

    torch keeps its thread count for the process: `compile` sets it for the calling thread and for threads that have
    not used torch yet, and `run` leaves it alone.
    """

    name = "torch_eager"

    def available(self) -> str | None:
        return None

    def refusal(self, model: Model, device: str, precision: Precision) -> str | None:
        if model.graph is None and model.module is None:
            return "it needs the model's graph or module, and this model came as ONNX with ops outside the vocabulary"
        return device_refusal(device, precision)

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        require(self, model, shapes, device, precision)
        torch.set_num_threads(threads)
        dtype = DTYPES[precision]
        try:
            if model.graph is not None:
                graph = laid_out(model.graph.to(dtype=dtype, device=device))
                call: Callable[..., object] = graph.evaluate
                constants = tuple(graph.weights.values())
            else:
                call = module = placed_module(model, device, dtype)
                constants = tuple(module.state_dict().values())
        except (RuntimeError, MemoryError) as error:
            raise refuse_compile(self.name, error) from error
        return TorchSession(self.name, call, tuple(shapes), device, dtype, constants, layout)


@dataclass(frozen=True)
class TorchSession:
    """A callable on tensors of one device, type and layout, and the constants it may return.

    Where the inputs lie, the outputs do.
    """

    backend: str
    call: Callable[..., object]
    shapes: tuple[Shape, ...]
    device: str
    dtype: torch.dtype
    constants: tuple[Tensor, ...]
    layout: Callable[[Tensor], torch.memory_format]

    def run(self, *inputs: Tensor) -> list[Tensor]:
        check_inputs(inputs, self.shapes)
        guard = exact_fp32() if self.dtype is torch.float32 else contextlib.nullcontext()
        # no_grad rather than inference_mode: the caller owns the outputs and may write into them.
        try:
            with torch.no_grad(), guard:
                placed = [x.to(self.device, self.dtype, memory_format=self.layout(x)) for x in inputs]
                outputs = [leaf for leaf in _pytree.tree_leaves(self.call(*placed)) if isinstance(leaf, Tensor)]
                owned = _owned(outputs, [*inputs, *placed, *self.constants])
                return [result.to(inputs[0].device if inputs else self.device) for result in owned]
        except (RuntimeError, MemoryError) as error:
            raise failure(self.backend, error) from error


def device_refusal(device: str, precision: Precision) -> str | None:
    """Give the reason torch can't compute on this device in this precision, or None."""
    if device == "cpu":
        return "fp16 arithmetic is for CUDA devices; on a CPU use fp32 or bf16" if precision == "fp16" else None
    if not device.startswith("cuda"):
        return f"it runs on cpu and cuda, not on {device}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    index = torch.device(device).index or 0
    count = torch.cuda.device_count()
    return None if index < count else f"{device} does not exist; there are {count} CUDA devices"


def placed_module(model: Model, device: str, dtype: torch.dtype) -> nn.Module:
    """Copy the model's module in evaluation mode to a device and type; the caller's own stays as it is."""
    if model.module is None:
        raise BackendError(f"{model.name} has no module")
    return copy.deepcopy(model.module).eval().to(device=device, dtype=dtype)


def laid_out(graph: Graph) -> Graph:
    """Lay convolution weights out as oneDNN and cuDNN read them beside channels_last activations."""
    return replace(graph, weights={name: w.contiguous(memory_format=layout(w)) for name, w in graph.weights.items()})


def layout(tensor: Tensor) -> torch.memory_format:
    # Measured on Compact 64x16 at 128x128, one AVX-512 core: 198 ms in channels_last, 285 ms in NCHW; ESPCN: 70 and 93.
    return torch.channels_last if tensor.ndim == 4 else torch.contiguous_format


def _owned(outputs: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Convert to float32 and copy what shares memory with an input, a constant or an earlier output."""
    taken = {tensor.untyped_storage().data_ptr() for tensor in others}
    owned = []
    for output in outputs:
        result = output.float()
        if result.untyped_storage().data_ptr() in taken:
            result = result.clone()
        taken.add(result.untyped_storage().data_ptr())
        owned.append(result)
    return owned
