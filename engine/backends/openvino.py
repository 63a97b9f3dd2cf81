"""OpenVINO on the CPU, fed with the graph written as ONNX or with the model's own file."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tilefuse.backends.base import Precision, Session
from tilefuse.backends.library import check_inputs, failure, load, missing, refuse_compile, require
from tilefuse.backends.onnx_source import onnx_refusal, onnx_source
from tilefuse.graph import Shape
from tilefuse.model import Model


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
        openvino = load("openvino")
        source = onnx_source(model, shapes)
        options = {
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        try:
            core = openvino.Core()
            network = core.read_model(source)
            network.reshape({port: list(shape) for port, shape in zip(network.inputs, shapes, strict=True)})
            compiled = core.compile_model(network, "CPU", options)
        except (RuntimeError, MemoryError, ValueError, TypeError) as error:
            raise refuse_compile("openvino", error) from error
        return OpenVinoSession(compiled, tuple(shapes))


@dataclass(frozen=True)
class OpenVinoSession:
    """A compiled model and its idle requests: a request serves one caller at a time and holds its own activations."""

    compiled: Any
    shapes: tuple[Shape, ...]
    idle: deque[Any] = field(default_factory=deque)

    def run(self, *inputs: Tensor) -> list[Tensor]:
        check_inputs(inputs, self.shapes)
        try:
            request = self._request()
            results = request.infer([x.detach().contiguous().numpy() for x in inputs], share_inputs=True)
            outputs = [torch.tensor(results[port], dtype=torch.float32) for port in self.compiled.outputs]
        except (RuntimeError, MemoryError, ValueError, TypeError) as error:
            raise failure("openvino", error) from error
        self.idle.append(request)
        return outputs

    def _request(self) -> Any:
        try:
            return self.idle.pop()
        except IndexError:
            return self.compiled.create_infer_request()
