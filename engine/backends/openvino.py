"""OpenVINO on the CPU, fed with the graph written as ONNX or with the model's own file."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilefuse.backends.base import Precision, Session
from tilefuse.backends.library import check_inputs, failure, load, missing, refuse_compile, require
from tilefuse.backends.onnx_source import onnx_refusal, onnx_source, pixels_source
from tilefuse.backends.pixels import Integers, PixelSession, check_pixels
from tilefuse.errors import BackendError
from tilefuse.graph import Shape
from tilefuse.machine import cpu_threads, has_bf16
from tilefuse.model import Model
from tilefuse.passes import add_before_shuffle, reduce_branches, widen_narrow_layers
from tilefuse.passes.exact_input import LEVELS, exact_byte_input

_TYPES: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}


class OpenVino:
    """Serves fp32 and bf16. The precision is always asked for: left alone, the library takes bf16 where it can."""

    name = "openvino"

    def available(self) -> str | None:
        return missing("openvino") or missing("onnx")

    def refusal(self, model: Model, device: str, precision: Precision) -> str | None:
        if device != "cpu":
            return f"it runs on the CPU, not on {device}"
        if precision == "fp16":
            return "it computes in fp32 or bf16 on a CPU, not in fp16"
        return onnx_refusal(model)

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        require(self, model, shapes, device, precision)
        form = _for_precision(model, shapes, precision)
        compiled = _compiled(onnx_source(form.model, shapes), shapes, form.computes, threads)
        return OpenVinoSession(compiled, tuple(shapes), form.scale)

    def compile_pixels(
        self,
        model: Model,
        shape: Shape,
        dtype: np.dtype[Any],
        *,
        device: str,
        precision: Precision,
        threads: int,
    ) -> PixelSession:
        require(self, model, [shape], device, precision)
        batch, channels, height, width = shape
        pixels = (batch, height, width, channels)
        form = _for_precision(model, [shape], precision)
        source = pixels_source(form.model, shape, dtype, form.scale)
        compiled = _compiled(source, [pixels], form.computes, threads)
        return OpenVinoPixels(compiled, pixels)


@dataclass(frozen=True)
class _Form:
    """A model to compile, the precision its float32 layers are to be computed in, and what it takes an image times."""

    model: Model
    computes: Precision
    scale: float = 1.0


def _for_precision(model: Model, shapes: Sequence[Shape], precision: Precision) -> _Form:
    """Give a model the form that is fastest, in bf16 the one that is right where there is one."""
    if model.graph is None:
        return _Form(model, precision)
    # Without the arithmetic the library would compute the branches in float32 and not say so.
    branches = reduce_branches(model.graph, torch.bfloat16) if precision == "bf16" and has_bf16() else None
    # The image comes as 0..255 where bf16 is to be exact, and only what resizes it knows that.
    graph = add_before_shuffle(model.graph) if precision == "fp32" else branches or model.graph
    graph = widen_narrow_layers(graph, graph.shapes(*shapes))
    if precision == "fp32" or branches is not None:
        return _Form(replace(model, graph=graph), "fp32")
    exact = exact_byte_input(graph, torch.bfloat16)
    scale = 1.0 if exact is None else LEVELS
    return _Form(replace(model, graph=exact or graph), precision, scale)


def _compiled(source: bytes, shapes: Sequence[Shape], precision: Precision, threads: int) -> Any:
    openvino = load("openvino")
    # As many windows at once as fit beside each other; a stream runs one.
    streams = max(1, cpu_threads() // threads)
    options = {
        "INFERENCE_PRECISION_HINT": _TYPES[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads * streams,
        "NUM_STREAMS": streams,
    }
    try:
        core = openvino.Core()
        network = core.read_model(source)
        network.reshape({port: list(shape) for port, shape in zip(network.inputs, shapes, strict=True)})
        compiled = core.compile_model(network, "CPU", options)
        computes = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    except (RuntimeError, MemoryError, ValueError, TypeError) as error:
        raise refuse_compile("openvino", error) from error
    if computes != _TYPES[precision]:
        raise BackendError(f"openvino computes in {computes} on this processor, not in {precision}")
    return compiled


@dataclass(frozen=True)
class OpenVinoSession:
    """A compiled model and its idle requests: a request serves one caller at a time and holds its own activations.

    The network takes `scale` times the image.
    """

    compiled: Any
    shapes: tuple[Shape, ...]
    scale: float = 1.0
    idle: deque[Any] = field(default_factory=deque)

    def run(self, *inputs: Tensor) -> list[Tensor]:
        check_inputs(inputs, self.shapes)
        try:
            request = _request(self.compiled, self.idle)
            placed = [(x.detach() * self.scale if self.scale != 1 else x.detach()).contiguous() for x in inputs]
            results = request.infer([x.numpy() for x in placed], share_inputs=True)
            outputs = [torch.from_numpy(results[port].astype(np.float32)) for port in self.compiled.outputs]
        except (RuntimeError, MemoryError, ValueError, TypeError) as error:
            raise failure("openvino", error) from error
        self.idle.append(request)
        return outputs


@dataclass(frozen=True)
class OpenVinoPixels:
    """A compiled model that takes and gives integers [N, H, W, C]."""

    compiled: Any
    shape: Shape
    idle: deque[Any] = field(default_factory=deque)

    def run(self, pixels: Integers) -> tuple[Integers, bool]:
        check_pixels(pixels, self.shape)
        try:
            request = _request(self.compiled, self.idle)
            # The library writes into the caller's memory: to copy a large result takes as long as a layer.
            result = np.empty(tuple(self.compiled.outputs[0].shape), pixels.dtype)
            request.set_output_tensor(0, load("openvino").Tensor(result, shared_memory=True))
            check = request.infer([np.ascontiguousarray(pixels)], share_inputs=True)[self.compiled.outputs[1]]
            found = result, bool(np.isfinite(check))
        except (RuntimeError, MemoryError, ValueError, TypeError) as error:
            raise failure("openvino", error) from error
        self.idle.append(request)
        return found


def _request(compiled: Any, idle: deque[Any]) -> Any:
    try:
        return idle.pop()
    except IndexError:
        return compiled.create_infer_request()
