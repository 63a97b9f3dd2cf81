"""ncnn on the CPU: Winograd convolutions in exact fp32, fed from the graph."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.backends.base import Precision, Session
from tilefuse.backends.library import check_inputs, failure, load, missing, require, writing_refusal
from tilefuse.backends.pixels import Integers, PixelSession, check_pixels, is_finite, to_pixels, to_values
from tilefuse.emitters.ncnn import NcnnModel, to_ncnn
from tilefuse.errors import BackendError, DeviceError
from tilefuse.graph import Graph, Shape
from tilefuse.model import Model
from tilefuse.passes import add_before_shuffle

# Reduced storage and arithmetic are on by default; what is not float32 is switched off by name.
_OFF = (
    "use_fp16_packed",
    "use_fp16_storage",
    "use_fp16_arithmetic",
    "use_bf16_storage",
    "use_bf16_packed",
    "use_int8_inference",
    "use_int8_packed",
    "use_int8_storage",
    "use_int8_arithmetic",
    "use_vulkan_compute",
)
_ON = ("lightmode", "use_packing_layout", "use_winograd_convolution", "use_sgemm_convolution")
_OUT_OF_MEMORY = -100
_refusals: weakref.WeakKeyDictionary[Graph, str | None] = weakref.WeakKeyDictionary()


class Ncnn:
    """Runs one image at a time; a batch is a loop. The binding keeps Python's lock, so threads take turns."""

    name = "ncnn"

    def available(self) -> str | None:
        return missing("ncnn")

    def refusal(self, model: Model, device: str, precision: Precision) -> str | None:
        if device != "cpu":
            return f"it runs on the CPU, not on {device}"
        if precision != "fp32":
            return f"it serves fp32 only, not {precision}"
        if model.graph is None:
            return f"it needs the model's graph: {model.uncaptured}"
        if model.graph not in _refusals:
            _refusals[model.graph] = writing_refusal(model.graph, lambda graph, shapes: to_ncnn(graph, *shapes))
        return _refusals[model.graph]

    def compile(
        self, model: Model, shapes: Sequence[Shape], *, device: str, precision: Precision, threads: int
    ) -> Session:
        require(self, model, shapes, device, precision)
        return self._compiled(model, shapes, threads)

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
        session = self._compiled(model, [shape], threads)
        if len(session.network.output_shapes) != 1 or len(session.network.output_shapes[0]) != 4:
            raise BackendError("only a model of one image output gives pixels")
        return NcnnPixels(session, np.dtype(dtype))

    def _compiled(self, model: Model, shapes: Sequence[Shape], threads: int) -> NcnnSession:
        if model.graph is None:
            raise BackendError(f"{self.name} needs the model's graph")
        ncnn = load("ncnn")
        network = to_ncnn(add_before_shuffle(model.graph), *((1, *shape[1:]) for shape in shapes))
        _require_batches(model.graph, shapes)
        net = ncnn.Net()
        for option in _OFF:
            setattr(net.opt, option, False)
        for option in _ON:
            setattr(net.opt, option, True)
        net.opt.num_threads = threads
        if net.load_param_mem(network.param) != 0:
            raise BackendError(f"ncnn {ncnn.__version__} can't load the network written for it; a newer one may")
        # The binding copies the bytes before it returns.
        net.load_model_mem(network.weights)
        return NcnnSession(ncnn, net, network, tuple(shapes))


@dataclass(frozen=True)
class NcnnSession:
    """A loaded network."""

    ncnn: Any
    net: Any
    network: NcnnModel
    shapes: tuple[Shape, ...]

    def run(self, *inputs: Tensor) -> list[Tensor]:
        check_inputs(inputs, self.shapes)
        batch = self.shapes[0][0]
        outputs = [torch.empty(batch, *shape[1:]) for shape in self.network.output_shapes]
        for image in range(batch):
            mats = self.extracted([x[image].detach().numpy() for x in inputs])
            for output, mat in zip(outputs, mats, strict=True):
                output[image].numpy()[...] = mat.numpy()
        return outputs

    def extracted(self, inputs: Sequence[NDArray[np.float32]]) -> list[Any]:
        """Run one image, its inputs without their batch, and return the outputs as the library's own matrices.

        Raises:
            MemoryError: memory ran out.
            DeviceError: the library failed, or gave another shape than was due.
        """
        mats = []
        try:
            extractor = self.net.create_extractor()
            for blob, x in zip(self.network.inputs, inputs, strict=True):
                mat = self.ncnn.Mat(tuple(reversed(x.shape)))
                # A view that knows ncnn's padding between channels.
                mat.numpy()[...] = x
                extractor.input(blob, mat)
            for blob, shape in zip(self.network.outputs, self.network.output_shapes, strict=True):
                status, mat = extractor.extract(blob)
                if status == _OUT_OF_MEMORY:
                    raise MemoryError(f"ncnn ran out of memory at blob {blob}")
                if status != 0:
                    raise DeviceError(f"ncnn failed with status {status} at blob {blob}")
                if mat.numpy().shape != tuple(shape[1:]):
                    raise DeviceError(f"ncnn gave {mat.numpy().shape} at blob {blob}; {tuple(shape[1:])} was due")
                mats.append(mat)
        except (RuntimeError, ValueError) as error:
            raise failure("ncnn", error) from error
        return mats


@dataclass(frozen=True)
class NcnnPixels:
    """A loaded network of images; integers are made of the library's own result, which is never copied as floats."""

    session: NcnnSession
    dtype: np.dtype[Any]

    def run(self, pixels: Integers) -> tuple[Integers, bool]:
        batch, channels, height, width = self.session.shapes[0]
        check_pixels(pixels, (batch, height, width, channels))
        done, finite = [], True
        for image in to_values(pixels):
            (mat,) = self.session.extracted([image])
            result = torch.from_numpy(mat.numpy())[None]
            finite = finite and is_finite(result)
            done.append(to_pixels(result, self.dtype))
        return (done[0] if batch == 1 else np.concatenate(done)), finite


def _require_batches(graph: Graph, shapes: Sequence[Shape]) -> None:
    """Refuse a batch whose images the graph mixes: every value must keep the batch in front."""
    batches = {shape[0] for shape in shapes}
    if batches == {1}:
        return
    if len(batches) > 1:
        raise BackendError(f"ncnn runs one image at a time; the inputs have batches of {sorted(batches)}")
    (batch,) = batches
    single = graph.shapes(*((1, *shape[1:]) for shape in shapes))
    for name, shape in graph.shapes(*shapes).items():
        if name not in graph.weights and shape != (batch, *single[name][1:]):
            raise BackendError(f"ncnn runs one image at a time, and the value {name!r} mixes the images of a batch")
