"""torch's Inductor: the graph as one module, exported whole and compiled to C++ or Triton for one shape."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from tilefuse.backends.base import Precision, Session
from tilefuse.backends.library import refuse_compile, require
from tilefuse.backends.precision import exact_fp32
from tilefuse.backends.torch_eager import DTYPES, TorchSession, device_refusal, placed_module
from tilefuse.graph import Graph, Shape
from tilefuse.model import Model
from tilefuse.passes import widen_narrow_layers


class GraphModule(nn.Module):
    """A graph as a module, its weights as buffers."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.slots = {name: f"weight_{position}" for position, name in enumerate(graph.weights)}
        for name, slot in self.slots.items():
            self.register_buffer(slot, graph.weights[name])

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Evaluate the graph."""
        values = {name: getattr(self, slot) for name, slot in self.slots.items()}
        values.update(zip((spec.name for spec in self.graph.inputs), inputs, strict=True))
        for node in self.graph.nodes:
            values[node.output] = node.op.apply(*(values[name] for name in node.inputs))
        return tuple(values[name] for name in self.graph.outputs)


class Inductor:
    """Compiles at `compile`, which takes seconds to a minute, and runs the code once to load it.

    The export is whole by construction: an op that can't be traced is an error, never a part run by the interpreter.
    Sessions hold compiled code only and none of torch.compile's guards, so running in another thread, or compiling many
    shapes, never compiles again. Thread counts: as in `TorchEager`; the code is made for the count at `compile`.
    """

    name = "inductor"

    def available(self) -> str | None:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return f"it compiles with {compiler}, which is not installed"
        return None

    def refusal(self, model: Model, device: str, precision: Precision) -> str | None:
        if model.graph is None and model.module is None:
            return "it needs the model's graph or module, and this model came as ONNX with ops outside the vocabulary"
        if device.startswith("cuda") and find_spec("triton") is None:
            return "on a CUDA device it needs triton; install tilefuse[gpu]"
        return device_refusal(device, precision)

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        from torch._inductor import compile as compile_fx

        require(self, model, shapes, device, precision)
        torch.set_num_threads(threads)
        dtype = DTYPES[precision]
        try:
            if model.graph is not None:
                graph = model.graph
                if device == "cpu":
                    graph = widen_narrow_layers(graph, graph.shapes(*shapes))
                module: nn.Module = GraphModule(graph.to(dtype=dtype, device=device)).eval()
            else:
                module = placed_module(model, device, dtype)
            examples: list[Any] = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
            with torch.no_grad(), exact_fp32():
                program = torch.export.export(module, tuple(examples)).module()
                call = compile_fx(program, examples, options={"freezing": True})
        # Whatever the tracer, the code generator or the C++ compiler raises is a reason not to serve.
        except Exception as error:
            raise refuse_compile(self.name, error) from error
        constants = tuple(module.state_dict().values())
        session = TorchSession(self.name, call, tuple(shapes), device, dtype, constants, _contiguous)
        session.run(*(torch.zeros(shape) for shape in shapes))
        return session


def _contiguous(_: Tensor) -> torch.memory_format:
    # The code is made for the strides of its examples; inside, it chooses its own.
    return torch.contiguous_format
