"""What the ONNX engines load: the graph written as ONNX for fixed shapes, or the file the model came in."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilefuse.backends.library import writing_refusal
from tilefuse.errors import BackendError
from tilefuse.graph import Graph, Shape
from tilefuse.model import Model

if TYPE_CHECKING:
    import onnx

_refusals: weakref.WeakKeyDictionary[Graph, str | None] = weakref.WeakKeyDictionary()


def onnx_source(model: Model, shapes: Sequence[Shape]) -> bytes:
    """Write the graph as a serialised ONNX model; without a graph give the model as it came.

    Raises:
        BackendError: the graph can't be written as ONNX, or there is neither graph nor file.
        ModelError: the graph can't take inputs of these shapes.
    """
    if model.graph is not None:
        return bytes(_write(model.graph, shapes).SerializeToString())
    if model.onnx is None:
        raise BackendError(f"{model.name} has neither a graph nor an ONNX form")
    return model.onnx


def pixels_source(model: Model, shape: Shape, dtype: np.dtype[Any], scale: float = 1.0) -> bytes:
    """Write the graph as a serialised ONNX model of integers [N, H, W, C] for windows of `shape` [N, C, H, W].

    The graph takes `scale` times an image in 0..1.

    Raises:
        BackendError: there is no graph, it can't be written as ONNX, or it is no image-to-image network.
        ModelError: the graph can't take inputs of this shape.
    """
    from tilefuse.emitters.onnx_pixels import with_pixels

    if model.graph is None:
        raise BackendError(f"{model.name} has no graph to convert pixels in")
    return bytes(with_pixels(_write(model.graph, [shape]), dtype, scale).SerializeToString())


def onnx_refusal(model: Model) -> str | None:
    """Give the reason the model has no ONNX form, or None. The writing is tried once a graph."""
    if model.graph is None:
        return None if model.onnx is not None else f"it needs an ONNX form of the model: {model.uncaptured}"
    if model.graph not in _refusals:
        _refusals[model.graph] = writing_refusal(model.graph, _write)
    return _refusals[model.graph]


def _write(graph: Graph, shapes: Sequence[Shape]) -> onnx.ModelProto:
    from tilefuse.emitters.onnx import to_onnx

    return to_onnx(graph, shapes=shapes)
