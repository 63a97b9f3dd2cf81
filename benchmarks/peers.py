"""The other ways to run a network, each called directly on the whole image as its own documentation says.

A peer gets the module as its author published it and runs it with its library's default settings and all threads.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.nets import Case

Network = Callable[[Tensor], Tensor]


class Peer(Protocol):
    """A library. `prepare` compiles a module for inputs like the example, runs it once, and returns it as a call."""

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    @property
    def precision(self) -> str:
        """Arithmetic that was asked for: fp32 or bf16."""
        ...

    def prepare(self, module: nn.Module, example: Tensor) -> Network:
        """Return the call; float32 in and out."""
        ...


@dataclass(frozen=True)
class TorchPeer:
    """torch's eager mode, or torch.compile in its default mode."""

    name: str
    precision: str = "fp32"
    channels_last: bool = False
    compiled: bool = False

    def prepare(self, module: nn.Module, example: Tensor) -> Network:
        """Convert weights and layout, compile if asked to."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        layout = torch.channels_last if self.channels_last and example.ndim == 4 else torch.contiguous_format
        placed = module.to(dtype=dtype, memory_format=layout)
        network: Network = torch.compile(placed) if self.compiled else placed

        def call(x: Tensor) -> Tensor:
            with torch.inference_mode():
                return network(x.to(dtype=dtype, memory_format=layout)).float()

        call(example)
        return call


@dataclass(frozen=True)
class OnnxRuntimePeer:
    """ONNX Runtime on the file that torch.onnx.export writes for this input."""

    name: str = "onnxruntime"
    precision: str = "fp32"

    def prepare(self, module: nn.Module, example: Tensor) -> Network:
        """Export and load."""
        import onnxruntime

        with _quiet():
            program = torch.onnx.export(module, (example,), dynamo=True, verbose=False)
        if program is None:
            raise RuntimeError("torch.onnx.export gave no program")
        session = onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@dataclass(frozen=True)
class OpenVinoPeer:
    """OpenVINO on the module it converts by itself; the precision is always asked for, since it differs by machine."""

    name: str
    precision: str = "fp32"

    def prepare(self, module: nn.Module, example: Tensor) -> Network:
        """Convert and compile."""
        import openvino

        with _quiet():
            network = openvino.convert_model(module, example_input=example, input=list(example.shape))
        hint = {"fp32": "f32", "bf16": "bf16"}[self.precision]
        compiled = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        return lambda x: torch.from_numpy(compiled(x.numpy())[0])


@dataclass(frozen=True)
class NcnnPeer:
    """ncnn with its default options, on the network file that tilefuse writes; a batch is a loop."""

    name: str = "ncnn"
    precision: str = "fp32"

    def prepare(self, module: nn.Module, example: Tensor) -> Network:
        """Write the network and load it."""
        import ncnn

        from tilefuse.capture import from_module
        from tilefuse.emitters.ncnn import to_ncnn
        from tilefuse.passes import fold_batch_norm

        written = to_ncnn(fold_batch_norm(from_module(module, example)), (1, *example.shape[1:]))
        net = ncnn.Net()
        if net.load_param_mem(written.param) != 0:
            raise RuntimeError("ncnn can't load the network written for it")
        net.load_model_mem(written.weights)

        def one(image: Tensor) -> NDArray[Any]:
            extractor = net.create_extractor()
            extractor.input(written.inputs[0], ncnn.Mat(image.numpy()))
            status, mat = extractor.extract(written.outputs[0])
            if status != 0:
                raise RuntimeError(f"ncnn failed with status {status}")
            # A copy, since the memory is the library's.
            return np.array(mat)

        return lambda x: torch.from_numpy(np.stack([one(image) for image in x.contiguous()]))


PEERS: tuple[Peer, ...] = (
    TorchPeer("torch eager"),
    TorchPeer("torch eager channels_last", channels_last=True),
    TorchPeer("torch eager bf16", precision="bf16", channels_last=True),
    TorchPeer("torch.compile", compiled=True),
    OnnxRuntimePeer(),
    OpenVinoPeer("openvino f32"),
    OpenVinoPeer("openvino bf16", precision="bf16"),
    NcnnPeer(),
)


@dataclass(frozen=True)
class Direct:
    """A case through a peer: 8-bit image in and out, as a user writes it. `network_s` grows by each call's own part.

    What comes out lies in memory as Pillow and OpenCV take it, as the engine's does.
    """

    case: Case
    network: Network
    image: NDArray[np.uint8]
    network_s: list[float] = field(default_factory=list)

    def __call__(self) -> NDArray[np.uint8]:
        """Convert, run, convert back; or draw latents and run."""
        x = self.case.tensor(self.image)
        begin = time.perf_counter()
        y = self.network(x)
        self.network_s.append(time.perf_counter() - begin)
        low, high = self.case.value_range
        pixels = ((y - low) / (high - low) if (low, high) != (0, 1) else y).clamp(0, 1).mul(255).round().byte()
        if self.case.size is None:
            return pixels.permute(0, 2, 3, 1).contiguous().numpy()
        return (pixels[0, 0] if self.image.ndim == 2 else pixels[0].permute(1, 2, 0)).contiguous().numpy()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep converters from printing their progress between the rows of a table."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
