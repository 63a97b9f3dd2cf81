"""ONNX Runtime on the CPU or a CUDA device, fed with the graph written as ONNX or with the model's own file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from tilefuse.model import Model
from tilefuse.passes import add_before_shuffle, widen_narrow_layers

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# A model that runs in its own form may take half precision.
_FED: Mapping[str, torch.dtype] = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class OnnxRuntime:
    """Serves fp32; on a CUDA device only if the provider really loaded, never by falling back to the CPU."""

    name = "onnxruntime"

    def available(self) -> str | None:
        return missing("onnxruntime") or missing("onnx")

    def refusal(self, model: Model, device: str, precision: Precision) -> str | None:
        if precision != "fp32":
            return f"it serves fp32 only, not {precision}"
        if device != "cpu":
            if not device.startswith("cuda"):
                return f"it runs on cpu and cuda, not on {device}"
            offered = load("onnxruntime").get_available_providers()
            if _CUDA not in offered:
                return "the installed onnxruntime has no CUDA provider; install tilefuse[gpu] instead of tilefuse[cpu]"
        return onnx_refusal(model)

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        require(self, model, shapes, device, precision)
        session = _compiled(onnx_source(_for_device(model, shapes, device), shapes), device, threads)
        specs = session.get_inputs()
        unlike = [spec.name for spec in specs if spec.type not in _FED]
        if unlike:
            raise BackendError(f"onnxruntime is fed float32 or float16; {', '.join(unlike)} want another type")
        return OnnxRuntimeSession(session, {spec.name: _FED[spec.type] for spec in specs}, tuple(shapes))

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
        source = pixels_source(_for_device(model, [shape], device), shape, dtype)
        session = _compiled(source, device, threads)
        return OnnxRuntimePixels(session, session.get_inputs()[0].name, (batch, height, width, channels))


def _for_device(model: Model, shapes: Sequence[Shape], device: str) -> Model:
    """Give the model to compile."""
    if model.graph is None or device != "cpu":
        return model
    graph = add_before_shuffle(model.graph)
    return replace(model, graph=widen_narrow_layers(graph, graph.shapes(*shapes)))


def _compiled(source: bytes, device: str, threads: int) -> Any:
    ort = load("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Left alone its threads spin for 50 ms after each run and take the processor from decoding, encoding and whatever
    # embeds the engine. A millisecond bridges the gaps inside a run; without any, runs of 2 ms are a tenth slower.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "1000")
    wanted = _CPU if device == "cpu" else _CUDA
    place = {} if device == "cpu" else {"device_id": str(torch.device(device).index or 0), "use_tf32": "0"}
    try:
        session = ort.InferenceSession(source, options, providers=[(wanted, place)])
    # The library raises classes of its own, one a status code, with no common base.
    except Exception as error:
        raise refuse_compile("onnxruntime", error) from error
    if session.get_providers()[0] != wanted:
        raise BackendError(f"onnxruntime fell back to {session.get_providers()[0]}: its {wanted} did not load")
    return session


@dataclass(frozen=True)
class OnnxRuntimeSession:
    """An inference session, and the type each input is fed in; the library lets many threads run one."""

    session: Any
    types: Mapping[str, torch.dtype]
    shapes: tuple[Shape, ...]

    def run(self, *inputs: Tensor) -> list[Tensor]:
        check_inputs(inputs, self.shapes)
        feed = {
            name: x.detach().to("cpu", self.types[name]).contiguous().numpy()
            for name, x in zip(self.types, inputs, strict=True)
        }
        try:
            outputs = self.session.run(None, feed)
        # As at compile.
        except Exception as error:
            raise failure("onnxruntime", error) from error
        return [torch.from_numpy(output).float() for output in outputs]


@dataclass(frozen=True)
class OnnxRuntimePixels:
    """An inference session that takes and gives integers [N, H, W, C]."""

    session: Any
    name: str
    shape: Shape

    def run(self, pixels: Integers) -> tuple[Integers, bool]:
        check_pixels(pixels, self.shape)
        try:
            result, check = self.session.run(None, {self.name: np.ascontiguousarray(pixels)})
        # As at compile.
        except Exception as error:
            raise failure("onnxruntime", error) from error
        return result, bool(np.isfinite(check))
