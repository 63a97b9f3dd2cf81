"""Reading ONNX files that may be hostile: sizes are bounded, and no file outside the model's folder is ever opened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.errors import ModelError

if TYPE_CHECKING:
    import onnx

# protobuf itself stops at 2 GiB.
MAX_BYTES = 2**31 - 1


def onnx_module() -> ModuleType:
    """Import onnx, an optional dependency.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return import_module("onnx")
    except ImportError as error:
        raise ModelError("ONNX models need the onnx package: pip install tilefuse[cpu]") from error


def read_model(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """Read a model with all of its weights inside.

    External data is read only from regular files in the model's own folder.

    Raises:
        ModelError: the file is missing, too large, no ONNX model, or refers to data outside its folder.
    """
    module = onnx_module()
    if isinstance(source, module.ModelProto):
        for tensor in _all_tensors(source):
            if tensor.data_location == module.TensorProto.EXTERNAL:
                raise ModelError(f"tensor {tensor.name!r} lies in another file; load the model from its path instead")
        return source
    path = Path(source)
    data = _read(path, 0, None, MAX_BYTES)
    model = module.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, whose module depends on its implementation
        raise ModelError(f"{path}: not an ONNX model, or truncated: {error}") from error
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{path}: not an ONNX model; it holds no graph")
    try:
        _attach_external(model, path, MAX_BYTES - len(data))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return model


def tensor_array(tensor: onnx.TensorProto) -> NDArray[Any]:
    """Decode a tensor.

    Raises:
        ModelError: its data does not fill its shape, or its type is unknown.
    """
    module = onnx_module()
    if tensor.data_location == module.TensorProto.EXTERNAL:
        raise ModelError(f"tensor {tensor.name!r} lies in another file, which is allowed for weights only")
    if any(size < 0 for size in tensor.dims) or math.prod(tensor.dims) > MAX_BYTES:
        raise ModelError(f"tensor {tensor.name!r} has the shape {list(tensor.dims)}")
    try:
        array = np.asarray(module.numpy_helper.to_array(tensor))
    except Exception as error:  # a dozen kinds, by data type and field
        raise ModelError(f"tensor {tensor.name!r} can't be decoded: {error}") from error
    if array.dtype == object:
        raise ModelError(f"tensor {tensor.name!r} holds text, not numbers")
    return array


def onnx_example(model: onnx.ModelProto) -> Tensor | None:
    """Make an input for a valid model of one image [N, C, H, W] whose weights are finite; None for any other."""
    module = onnx_module()
    if any(
        not np.isfinite(array).all() for array in map(tensor_array, _tensors(model.graph)) if array.dtype.kind == "f"
    ):
        return None
    try:
        module.checker.check_model(model)
    except (module.checker.ValidationError, ValueError, TypeError):
        return None
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    sizes = [dim.dim_value for value in inputs[:1] for dim in value.type.tensor_type.shape.dim]
    taken = (module.TensorProto.FLOAT, module.TensorProto.FLOAT16)
    if len(inputs) != 1 or len(sizes) != 4 or inputs[0].type.tensor_type.elem_type not in taken:
        return None
    return torch.rand([size or usual for size, usual in zip(sizes, (1, 3, 64, 96), strict=True)])


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    constants = [a.t for node in graph.node for a in node.attribute if a.HasField("t")]
    return [*graph.initializer, *constants]


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Find the tensors of every graph in a model, those of branches, functions and training included."""
    yield from _within(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)
    for training in model.training_info:
        yield from _within(training.initialization)
        yield from _within(training.algorithm)


def _within(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _within(graph)


def _attach_external(model: onnx.ModelProto, path: Path, budget: int) -> None:
    """Replace references to external data by the data."""
    module = onnx_module()
    folder = path.parent.resolve()
    for tensor in _all_tensors(model):
        if tensor.data_location != module.TensorProto.EXTERNAL:
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location = fields.get("location", "")
        try:
            target = (folder / location).resolve()
            offset = int(fields.get("offset", 0))
            length = int(fields["length"]) if "length" in fields else None
        except (ValueError, OSError, RuntimeError) as error:
            raise ModelError(f"tensor {tensor.name!r} has a malformed external data entry: {error}") from error
        if not location or Path(location).is_absolute() or ".." in Path(location).parts or folder not in target.parents:
            raise ModelError(f"tensor {tensor.name!r} refers to {location!r}, outside the model's folder; not read")
        tensor.raw_data = _read(target, offset, length, budget)
        budget -= len(tensor.raw_data)
        tensor.data_location = module.TensorProto.DEFAULT
        del tensor.external_data[:]


def _read(path: Path, offset: int, length: int | None, budget: int) -> bytes:
    """Read part of a regular file of bounded size."""
    try:
        if not path.is_file():
            raise ModelError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        wanted = size - offset if length is None else length
        if offset < 0 or wanted < 0 or offset + wanted > size:
            raise ModelError(f"{path}: holds {size} bytes; the model expects {wanted} at {offset}")
        if wanted > budget:
            raise ModelError(f"{path}: a model may hold {MAX_BYTES} bytes in all; this is {wanted} more than is left")
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(wanted)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: can't be read: {error}") from error
