"""What every backend asks of the library it drives: is it there, does it import, what did its failure mean."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tilefuse.backends.base import Backend, Precision
from tilefuse.errors import BackendError, DeviceError, ModelError
from tilefuse.graph import Graph, Shape
from tilefuse.model import Model

# Divisible by the usual strides and shuffle factors.
_NOMINAL_SIZE = 96
_OUT_OF_MEMORY = (
    *("out of memory", "bad_alloc", "not enough memory", "allocate memory", "failed to allocate"),
    # cuBLAS and cuDNN
    *("alloc_failed", "allocation_failed"),
)

_TELEMETRY = "openvino_telemetry"
# How OpenVINO's errors begin, before they come to the point.
_PREAMBLE = ("Exception from", "Check '", "FrontEnd API", "Model wasn't", "-- ", "While validating")


def missing(library: str) -> str | None:
    """Give the reason a library can't be imported, or None; nothing is imported to find out."""
    if find_spec(library) is None:
        return f"{library} is not installed; install tilefuse[cpu] (on a CUDA machine tilefuse[gpu])"
    return None


def load(library: str) -> ModuleType:
    """Import a library.

    Raises:
        BackendError: it is missing, or its installation is broken.
    """
    try:
        with _telling_nobody():
            return importlib.import_module(library)
    except (ImportError, OSError) as error:
        raise BackendError(f"{library} can't be imported: {first_line(error)}; install it again") from error


@contextmanager
def _telling_nobody() -> Iterator[None]:
    """Keep OpenVINO from reporting its use over the network, for which it forks this process, whatever runs in it.

    Where its telemetry can't be imported it takes a stub of its own. A program that has imported it itself keeps it.
    """
    absent: Any = None
    ours = sys.modules.setdefault(_TELEMETRY, absent) is None
    try:
        yield
    finally:
        if ours:
            sys.modules.pop(_TELEMETRY, None)


def first_line(error: BaseException) -> str:
    """Give the first line that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not line.startswith(_PREAMBLE)), type(error).__name__)


def failure(backend: str, error: BaseException) -> Exception:
    """Name an error raised by a library while running: MemoryError where memory ran out, DeviceError otherwise."""
    full = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if full or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
        return MemoryError(f"{backend} ran out of memory: {first_line(error)}")
    return DeviceError(f"{backend} failed while running: {first_line(error)}")


def refuse_compile(backend: str, error: BaseException) -> Exception:
    """Name an error raised by a library while compiling."""
    named = failure(backend, error)
    if isinstance(named, MemoryError):
        return named
    return BackendError(f"{backend} can't compile this model: {first_line(error)}")


def require(backend: Backend, model: Model, shapes: Sequence[Shape], device: str, precision: Precision) -> None:
    """Raise BackendError unless the backend can serve the model so; ModelError if the graph can't take the shapes."""
    reason = backend.available() or backend.refusal(model, device, precision)
    if reason is not None:
        raise BackendError(f"{backend.name} can't run {model.name} in {precision} on {device}: {reason}")
    if model.graph is not None:
        model.graph.shapes(*shapes)


def writing_refusal(graph: Graph, write: Callable[..., object]) -> str | None:
    """Try to write a graph for another library at a nominal size and give the reason it can't be written, or None.

    What only the real size shows is refused at compile.
    """
    shapes = [(1, *(_NOMINAL_SIZE if size is None else size for size in spec.shape[1:])) for spec in graph.inputs]
    try:
        graph.shapes(*shapes)
    except ModelError:
        return None  # the nominal size is no size for this graph
    try:
        write(graph, shapes)
    except BackendError as error:
        return str(error)
    return None


def check_inputs(inputs: Sequence[Tensor], shapes: Sequence[Shape]) -> None:
    """Raise ModelError unless the tensors have the compiled shapes."""
    given = [tuple(tensor.shape) for tensor in inputs]
    if given != list(shapes):
        raise ModelError(f"the session was compiled for inputs of {_show(shapes)}; {_show(given)} were given")


def _show(shapes: Sequence[Shape]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)
