"""Hand-written Triton kernels: the graph as a flat list of launches in one arena, captured once per window shape."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tilefuse.backends.base import Precision, Session
from tilefuse.backends.library import first_line, refuse_compile, require
from tilefuse.backends.pixels import PixelSession
from tilefuse.errors import BackendError, ModelError
from tilefuse.graph import Graph, Shape
from tilefuse.model import Model

if TYPE_CHECKING:
    from tilefuse.backends.triton.places import Program
    from tilefuse.backends.triton.session import Bindings

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Tried one after the other until a network takes one: the smallest are lowered at once, and deep ones halve many times.
_NOMINAL_SIZES = (32, 96, 128, 256, 512, 1024)
_notes: weakref.WeakKeyDictionary[Graph, tuple[str, ...]] = weakref.WeakKeyDictionary()


class TritonFused:
    """Serves CUDA devices of compute capability 8.0 and newer; under TRITON_INTERPRET=1 it serves the CPU, slowly.

    A session holds one arena and one CUDA graph: its threads take turns, and integer pixels of one are copied while
    another's are computed. Its result for a pixel does not depend on window, batch or position. An op without a kernel
    runs through torch inside the same plan.
    """

    name = "triton_fused"

    def available(self) -> str | None:
        if find_spec("triton") is None:
            return "triton is not installed; install tilefuse[gpu] on a machine with an NVIDIA GPU"
        if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            return f"its kernels need an NVIDIA GPU, and torch {torch.__version__} finds no CUDA device"
        return None

    def refusal(self, model: Model, device: str, precision: Precision) -> str | None:
        from tilefuse.kernels.toolchain import interpreted, unavailable

        if model.graph is None:
            return f"it needs the model's graph: {model.uncaptured}"
        if not (device == "cpu" or device.startswith("cuda")):
            return f"it runs on cuda, not on {device}"
        if device.startswith("cuda") and not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no CUDA device"
        reason = unavailable(device)
        if reason is None and interpreted() and precision == "bf16":
            return "Triton's interpreter rounds bf16 wrongly; use fp32"
        return reason

    def lower(
        self, model: Model, shapes: Sequence[Shape], precision: Precision, *, pixels: torch.dtype | None = None
    ) -> Program:
        """Lower a model for input shapes, or windows of integer pixels; nothing runs, and no GPU is needed.

        Raises:
            BackendError: the model has no graph.
        """
        from tilefuse.backends.triton.lowering import lower

        if model.graph is None:
            raise BackendError(f"{self.name} needs the model's graph: {model.uncaptured}")
        return lower(model.graph, shapes, DTYPES[precision], pixels=pixels)

    def notes(self, model: Model) -> tuple[str, ...]:
        """Say what a user should know of how this backend serves a model: ops that torch runs, and the interpreter."""
        if model.graph is None:
            return ()
        if model.graph not in _notes:
            _notes[model.graph] = self._notes(model, model.graph)
        slow = os.environ.get("TRITON_INTERPRET") == "1"
        return (*(("it runs in Triton's interpreter, which is slow",) if slow else ()), *_notes[model.graph])

    def _notes(self, model: Model, graph: Graph) -> tuple[str, ...]:
        for size in _NOMINAL_SIZES:
            shapes = [tuple(size if i >= 2 else 1 for i in range(len(spec.shape))) for spec in graph.inputs]
            given = [
                tuple(known if known is not None else guess for known, guess in zip(spec.shape, shape, strict=True))
                for spec, shape in zip(graph.inputs, shapes, strict=True)
            ]
            try:
                program = self.lower(model, given, "fp32")
            except ModelError:
                continue
            ops = ", ".join(program.torch_ops)
            return (f"torch runs {ops}: no kernel serves it",) if ops else ()
        return ()

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        from tilefuse.backends.triton.session import TritonSession

        # A program of no images would have nothing to plan; the session answers for an empty batch itself.
        full = [(max(shape[0], 1), *shape[1:]) if shape else shape for shape in shapes]
        return TritonSession(self._bound(model, full, device, precision, threads), tuple(shapes))

    def compile_pixels(
        self, model: Model, shape: Shape, dtype: np.dtype[Any], *, device: str, precision: Precision, threads: int
    ) -> PixelSession:
        """Compile for windows of uint8 or uint16 pixels, [N, C, H, W] as the network sees them.

        Raises:
            BackendError: the backend can't serve this model so.
        """
        from tilefuse.backends.triton.session import TritonPixelSession

        if np.dtype(dtype) not in (np.uint8, np.uint16):
            raise BackendError(f"{self.name} takes uint8 and uint16 pixels, not {np.dtype(dtype)}")
        kind = torch.uint8 if np.dtype(dtype) == np.uint8 else torch.uint16
        full = (max(shape[0], 1), *shape[1:])
        bindings = self._bound(model, [full], device, precision, threads, kind)
        if len(bindings.outputs) != 1 or bindings.outputs[0].ndim != 4:
            raise BackendError(f"{self.name}: {model.name} gives no single image to round to pixels")
        return TritonPixelSession(bindings, np.dtype(dtype), empty=shape[0] == 0)

    def _bound(
        self,
        model: Model,
        shapes: Sequence[Shape],
        device: str,
        precision: Precision,
        threads: int,
        pixels: torch.dtype | None = None,
    ) -> Bindings:
        require(self, model, shapes, device, precision)
        torch.set_num_threads(threads)
        from tilefuse.backends.triton.session import bind

        try:
            return bind(self.lower(model, shapes, precision, pixels=pixels), device)
        except (RuntimeError, MemoryError) as error:
            raise refuse_compile(self.name, error) from error
        except (BackendError, ModelError):
            raise
        # Triton raises classes of its own for what its compiler or its launcher can't do, with no common base.
        except Exception as error:
            raise BackendError(f"{self.name} can't compile {model.name}: {first_line(error)}") from error
