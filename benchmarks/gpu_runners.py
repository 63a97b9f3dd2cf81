"""Who runs a network on a device: this project's kernels, and every baseline that is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from benchmarks.gpu_clock import Call, Clock
from tilefuse.backends.precision import exact_fp32
from tilefuse.backends.triton.lowering import lower
from tilefuse.backends.triton.session import Bindings, TritonSession, bind
from tilefuse.graph import Graph, Shape
from tilefuse.tiling import Grid


class MissingError(Exception):
    """A baseline can't run here; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Runner:
    """A network on its device: `call` runs it on what lies in its input, `result` is its last output, in float32."""

    call: Call
    result: Callable[[], Tensor]
    peak_bytes: int


def triton_bindings(graph: Graph, shape: Shape, device: str) -> Bindings:
    """Lower a graph in half precision and bind it."""
    return bind(lower(graph, [shape], torch.float16), device)


def triton_runner(graph: Graph, x: Tensor, clock: Clock) -> Runner:
    """Run the kernels; the peak is the arena and the weights, all the device memory there is."""
    bindings = triton_bindings(graph, tuple(x.shape), clock.device)
    session = TritonSession(bindings, (tuple(x.shape),))
    held = bindings.program.arena_bytes + bindings.program.weight_bytes
    return Runner(bindings.replay, lambda: session.run(x)[0].float(), held)


def tiles_equal(parts: TritonSession, cut: Grid, image: Tensor, whole: Tensor) -> bool:
    """Run an image window by window, and tell whether every core has the bits of the whole image's result."""
    for window in (cut[index] for index in range(len(cut))):
        y, x = window.y, window.x
        (made,) = parts.run(image[:, :, y.start : y.stop, x.start : x.stop])
        core = made[:, :, y.crop : y.crop + y.core_stop - y.core_start, x.crop : x.crop + x.core_stop - x.core_start]
        if not torch.equal(core, whole[:, :, y.core_start : y.core_stop, x.core_start : x.core_stop]):
            return False
    return len(cut) > 1


def eager_runner(module: nn.Module, x: Tensor, clock: Clock) -> Runner:
    """Run cuDNN through torch: channels_last, halves, replayed as a CUDA graph."""
    net, given = _half(module, x, clock.device)
    # cuDNN's search for its fastest kernels, and what that takes, is no part of what a run takes.
    _run(net, given)
    peak = clock.peak_bytes(lambda: _run(net, given))
    call = clock.captured(lambda: _run(net, given))
    return Runner(call, lambda: _run(net, given).float(), peak + _weights(net))


def compiled_runner(module: nn.Module, x: Tensor, clock: Clock) -> Runner:
    """Run torch.compile with its most searching setting."""
    if clock.device == "cpu":
        raise MissingError("it tunes for a GPU")
    net, given = _half(module, x, clock.device)
    compiled = torch.compile(net, mode="max-autotune", dynamic=False)
    for _ in range(3):
        _run(compiled, given)
    peak = clock.peak_bytes(lambda: _run(compiled, given))
    return Runner(lambda: _run(compiled, given), lambda: _run(compiled, given).float(), peak + _weights(net))


def onnx_runner(graph: Graph, x: Tensor, clock: Clock) -> Runner:
    """Run ONNX Runtime's CUDA provider in half precision on buffers that stay on the device."""
    if clock.device == "cpu" or find_spec("onnxruntime") is None or find_spec("onnx") is None:
        raise MissingError("onnxruntime-gpu and onnx are not installed")
    import onnxruntime as ort

    from tilefuse.emitters.onnx import to_onnx

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise MissingError("the installed onnxruntime has no CUDA provider")
    given = x.to(clock.device).half().contiguous()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        path.write_bytes(to_onnx(graph.to(dtype=torch.float16), shapes=[tuple(x.shape)]).SerializeToString())
        session = ort.InferenceSession(str(path), providers=["CUDAExecutionProvider"])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise MissingError("onnxruntime fell back to the CPU")
    shape = graph.shapes(tuple(x.shape))[graph.outputs[0]]
    out = torch.empty(shape, dtype=torch.float16, device=clock.device)
    binding = session.io_binding()
    (source,), (target,) = session.get_inputs(), session.get_outputs()
    binding.bind_input(source.name, "cuda", 0, 10, list(given.shape), given.data_ptr())
    binding.bind_output(target.name, "cuda", 0, 10, list(out.shape), out.data_ptr())
    call = lambda: session.run_with_iobinding(binding)  # noqa: E731
    call()
    return Runner(call, lambda: out.float(), 0)


def cudnn_runner(graph: Graph, x: Tensor, clock: Clock) -> Runner:
    """Run cuDNN's fused graphs in half precision, replayed as one CUDA graph."""
    if find_spec("cudnn") is None:
        raise MissingError("cudnn-frontend is not installed")
    if clock.device == "cpu":
        raise MissingError("it runs on a GPU")
    import cudnn

    from benchmarks.gpu_cudnn import fused_network, laid_out

    before = torch.cuda.memory_allocated()
    given = laid_out(x.to(clock.device, torch.float16))
    network = fused_network(graph, tuple(x.shape), torch.float16, clock.device, cudnn)
    with torch.no_grad():
        # What the graphs hold is all allocated now: their results and workspaces.
        held = torch.cuda.memory_allocated() - before
        peak = clock.peak_bytes(lambda: network(given))
        call = clock.captured(lambda: network(given))
    return Runner(call, lambda: network(given).float(), held + peak)


def reference(module: nn.Module, x: Tensor, device: str) -> Tensor:
    """Run the network in true fp32."""
    with exact_fp32(), torch.no_grad():
        result: Tensor = module.to(device)(x.to(device))
    return result.float()


def _half(module: nn.Module, x: Tensor, device: str) -> tuple[nn.Module, Tensor]:
    # The fastest kernels that torch can find: a process that measures has the switch for itself.
    torch.backends.cudnn.benchmark = device == "cuda"
    dtype = torch.float16 if device == "cuda" else torch.float32
    net = module.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, x.to(device, dtype, memory_format=torch.channels_last)


def _run(net: nn.Module, given: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = net(given)
    return result


def _weights(net: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
