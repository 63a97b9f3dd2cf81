"""Turn what the user names (a bundled model, a file, a module) into a `Model`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils._pytree import keystr, tree_flatten_with_path

from tilefuse.backends import registry
from tilefuse.capture import INSTEAD_OF_PROGRAM, from_module, from_onnx, inference_mode_of
from tilefuse.errors import ModelError, TilefuseError
from tilefuse.export.checkpoints import bundled, load_bundled, load_module
from tilefuse.footprint import Axis, Footprint, footprint
from tilefuse.forked import computing
from tilefuse.graph import Graph
from tilefuse.images.outputs import shown
from tilefuse.importers.onnx_files import onnx_example, read_model
from tilefuse.importers.onnx_metadata import value_range
from tilefuse.machine import cpu_threads
from tilefuse.model import Model
from tilefuse.passes import fold_batch_norm, lower_resizes
from tilefuse.planner import input_shapes

# Small, because a deep network is captured by running it; the larger ones are for those that halve often.
EXAMPLE_SIZES = (16, 32, 64, 128)


def load_model(source: str | os.PathLike[str] | nn.Module) -> Model:
    """Load a bundled name, a checkpoint, an ONNX file or a module.

    Raises:
        ModelError: nothing of that name, a damaged or unsafe file, an architecture nobody recognises, a network of
            several outputs, or a program of torch.export.
    """
    computing()
    if isinstance(source, nn.Module):
        return _from_module(in_float32(source), type(source).__name__, {}, [])
    if isinstance(source, ExportedProgram):
        raise ModelError(f"an ExportedProgram keeps the sizes and the mode it was exported in; {INSTEAD_OF_PROGRAM}")
    if not isinstance(source, str | os.PathLike):
        raise ModelError(
            f"{type(source).__name__} is no model; give a bundled name, the path of a checkpoint or .onnx file, or a "
            "torch.nn.Module (an object of it, not its class or its state dict)"
        )
    path = Path(source)
    if path.suffix.lower() == ".onnx":
        return _from_onnx(path)
    is_name = str(source) in bundled() or (not path.suffix and len(path.parts) == 1 and not path.exists())
    module, descriptor = load_bundled(str(source)) if is_name else load_module(path)
    details = {"architecture": descriptor.architecture}
    details |= {key: str(value) for key, value in descriptor.hyperparameters.items()}
    examples = [torch.rand(1, *shape) for shape in descriptor.inputs.values()]
    model = _from_module(module, str(source) if is_name else path.name, details, examples)
    return replace(model, value_range=descriptor.value_range)


def in_float32(module: nn.Module) -> nn.Module:
    """Return a module whose weights are float32: itself, or a copy, as precision is the backends' affair.

    Raises:
        ModelError: its weights have no values yet, or it can't be copied.
    """
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta or is_lazy(tensor) for tensor in tensors):
        raise ModelError(f"{type(module).__name__}: its weights have no values yet; load them, or call it once, before")
    if all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point()):
        return module
    try:
        return deepcopy(module).float()
    # A stranger's module may raise anything when it is copied.
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} can't be copied to take its weights in float32: {error}; give module.float()"
        ) from error


def _from_module(module: nn.Module, name: str, details: Mapping[str, str], examples: Sequence[Tensor]) -> Model:
    sha256 = _module_sha256(module)
    with inference_mode_of(module), torch.no_grad():
        inputs = examples or [_example(module)]
        try:
            graph = fold_batch_norm(from_module(module, *inputs))
        except ModelError as error:
            # The module itself is the truth: what the vocabulary can't say still runs, as a whole.
            untiled, channels, why = _untiled(inputs[0], _single(name, module(*inputs)), str(error))
            model = Model(name, sha256, None, str(error), module, details=details)
            return replace(model, footprint=untiled, no_footprint=why, image_channels=channels)
        if len(graph.outputs) > 1:
            _single(name, module(*inputs))
    return _captured(Model(name, sha256, graph, module=module, details=details), graph)


def _single(name: str, result: object) -> Tensor | None:
    """Return the one tensor of a module's result, None where it holds none. Raises ModelError where it holds more."""
    tensors = [(keystr(at), leaf) for at, leaf in tree_flatten_with_path(result)[0] if isinstance(leaf, Tensor)]
    if len(tensors) > 1:
        listed = ", ".join(f"{at} of {'x'.join(map(str, tensor.shape))}" for at, tensor in tensors)
        raise ModelError(
            f"{name} gives {len(tensors)} outputs: {listed}; an engine runs a network of one. Load a module whose "
            "forward calls this one and returns the wanted tensor alone"
        )
    return tensors[0][1] if tensors else None


def _from_onnx(path: Path) -> Model:
    proto = read_model(path)
    outputs = [value.name for value in proto.graph.output]
    if len(outputs) > 1:
        held = {tensor.name for tensor in proto.graph.initializer}
        inputs = [value.name for value in proto.graph.input if value.name not in held]
        raise ModelError(
            f"{shown(path)} gives {len(outputs)} outputs: {', '.join(outputs)}; an engine runs a network of one. Keep "
            f"the wanted one with onnx.utils.extract_model({str(path)!r}, 'one.onnx', {inputs}, {outputs[:1]})"
        )
    data = proto.SerializeToString()
    sha256 = hashlib.sha256(data).hexdigest()
    model = Model(path.name, sha256, value_range=value_range(proto), details={"format": "ONNX"})
    try:
        graph = fold_batch_norm(from_onnx(proto))
    except ModelError as error:
        runnable = replace(model, uncaptured=str(error), onnx=data)
        example = onnx_example(proto)
        if example is None:
            raise
        untiled, channels, why = _untiled(example, _first_result(runnable, example, error), str(error))
        return replace(runnable, footprint=untiled, no_footprint=why, image_channels=channels)
    return _captured(model, graph)


def _first_result(model: Model, example: Tensor, reason: ModelError) -> Tensor:
    """Run a model the vocabulary can't say once, on ONNX Runtime; where that fails too, the first reason stands."""
    backend = registry.get("onnxruntime")
    if backend.available() is not None:
        raise reason
    try:
        shapes = (tuple(example.shape),)
        session = backend.compile(model, shapes, device="cpu", precision="fp32", threads=cpu_threads())
        return session.run(example)[0]
    except TilefuseError as error:
        raise reason from error


def _captured(model: Model, graph: Graph) -> Model:
    try:
        found = footprint(graph)
    except ModelError as error:
        return replace(model, graph=graph, no_footprint=str(error))
    if len(graph.inputs) > 1:
        names = ", ".join(spec.name for spec in graph.inputs)
        raise ModelError(
            f"{model.name} takes {len(graph.inputs)} inputs ({names}), and an engine gives a network one image; join "
            "them as channels of one, or make the others constants"
        )
    shapes = graph.shapes(*input_shapes(graph, 1, (found.minimum_px, found.minimum_px)))
    channels = (shapes[graph.inputs[0].name][1], shapes[graph.outputs[0]][1])
    return replace(model, graph=lower_resizes(graph, shapes), footprint=found, image_channels=channels)


def _untiled(example: Tensor, result: Tensor | None, reason: str) -> tuple[Footprint | None, tuple[int, int], str]:
    """Describe a network known only by one run: whole images, at the scale seen."""
    if example.ndim != 4 or result is None or result.ndim != 4:
        return None, (0, 0), "it maps no image to an image"
    axes = [Axis(Fraction(result.shape[d], example.shape[d]), 0, 0, 0, 1) for d in (2, 3)]
    return Footprint(axes[0], axes[1], (reason,), 1), (example.shape[1], result.shape[1]), ""


def _module_sha256(module: nn.Module) -> str:
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _example(module: nn.Module) -> Tensor:
    """Find an input the module takes: channels from its first layer, a modest size.

    Raises:
        ModelError: it takes none of the usual shapes.
    """
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)), None)
    shapes: list[tuple[int, ...]] = []
    if isinstance(first, nn.Linear):
        shapes.append((2, first.in_features))
    elif isinstance(first, nn.ConvTranspose2d):
        shapes.append((2, first.in_channels, 1, 1))
    channels = [first.in_channels] if isinstance(first, nn.Conv2d) else []
    shapes += [(1, c, size, size * 3 // 2) for c in dict.fromkeys([*channels, 3, 1, 4]) for size in EXAMPLE_SIZES]
    reason = ""
    for shape in shapes:
        try:
            module(torch.zeros(shape))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = reason or str(error).splitlines()[0]
        else:
            return torch.rand(shape)
    raise ModelError(
        f"{type(module).__name__}: none of the usual inputs fits (an image of 1, 3 or 4 channels, a latent): {reason}. "
        "Capture it yourself with tilefuse.capture.from_module(module, example)"
    )
