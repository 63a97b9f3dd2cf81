"""What the protocol promises of every backend: refusals, threads, ownership, precision, and errors with names."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import vocabulary
from tests.conftest import Compare
from tilefuse.backends import library, ncnn, onnxruntime, registry
from tilefuse.backends.base import Precision, Session
from tilefuse.backends.precision import exact_fp32
from tilefuse.capture import from_module
from tilefuse.errors import BackendError, DeviceError, ModelError, UsageError
from tilefuse.export.checkpoints import load_bundled
from tilefuse.graph import Graph, Input, Node
from tilefuse.model import Model
from tilefuse.ops import Mean, Reshape

EXACT = ("torch_eager", "onnxruntime", "openvino", "ncnn")
ALL = (*EXACT, "inductor")


def compiled(name: str, model: Model | Graph, *inputs: Tensor, precision: Precision = "fp32") -> Session:
    model = Model("tried", "0", graph=model) if isinstance(model, Graph) else model
    shapes = [tuple(x.shape) for x in inputs]
    return registry.get(name).compile(model, shapes, device="cpu", precision=precision, threads=1)


def test_the_registry_lists_its_names() -> None:
    assert set(registry.BACKENDS) == {*ALL, "triton_fused"}
    assert all(registry.get(name).name == name for name in registry.BACKENDS)
    with pytest.raises(UsageError, match=r"cudnn.*ncnn, openvino, onnxruntime, torch_eager, inductor"):
        registry.get("cudnn")


def test_preference_keeps_who_can_not_serve_and_says_why() -> None:
    model = Model("compact", "0", graph=vocabulary.compact())
    fp32 = registry.preference(model, "cpu", "fp32")
    assert next(name for name, reason in fp32 if reason is None) == "ncnn"
    bf16 = dict(registry.preference(model, "cpu", "bf16"))
    assert {name for name, reason in bf16.items() if reason is None} >= {"openvino", "torch_eager"}
    assert "fp32 only" in (bf16["ncnn"] or "")
    cuda = registry.preference(model, "cuda", "fp32")
    assert [name for name, _ in cuda][:2] == ["torch_eager", "inductor"]
    if not torch.cuda.is_available():
        assert all(reason for _, reason in cuda)


def test_importing_the_registry_imports_no_library() -> None:
    code = "import sys, tilefuse.backends.registry; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"ncnn", "openvino", "onnxruntime", "onnx"}.isdisjoint(loaded)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "ncnn"])
def test_a_missing_library_is_a_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "find_spec", lambda _: None)
    assert f"{name} is not installed" in (registry.get(name).available() or "")
    with pytest.raises(BackendError, match="is not installed"):
        compiled(name, vocabulary.compact(), torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "ncnn"])
def test_a_broken_installation_is_a_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> types.ModuleType:
        raise ImportError("libgomp.so.1: cannot open shared object file\nmore")

    monkeypatch.setattr(library.importlib, "import_module", broken)
    with pytest.raises(BackendError, match=rf"{name} can't be imported: libgomp.* file; install it again"):
        compiled(name, vocabulary.compact(), torch.rand(1, 3, 4, 4))


def test_inductor_asks_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in (registry.get("inductor").available() or "")


@pytest.mark.parametrize("name", ALL)
def test_unknown_devices_and_cpu_fp16_are_refused(name: str) -> None:
    model = Model("compact", "0", graph=vocabulary.compact())
    assert registry.get(name).refusal(model, "tpu", "fp32")
    assert registry.get(name).refusal(model, "cpu", "fp16")
    with pytest.raises(BackendError, match=f"{name} can't run compact in fp16 on cpu"):
        compiled(name, model, torch.rand(1, 3, 4, 4), precision="fp16")


@pytest.mark.parametrize("name", EXACT)
def test_threads_share_a_session(name: str) -> None:
    graph = vocabulary.rrdb()
    inputs = [torch.rand(1, 3, 17, 23, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    session = compiled(name, graph, inputs[0])
    serial = [session.run(x)[0] for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            parallel = list(pool.map(lambda x: session.run(x)[0], inputs))
            assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))


@pytest.mark.parametrize("name", EXACT)
def test_outputs_belong_to_the_caller(name: str) -> None:
    graph = vocabulary.compact()
    graph = Graph(graph.inputs, graph.nodes, (*graph.outputs, *graph.outputs, graph.inputs[0].name), graph.weights)
    x = torch.rand(1, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    session = compiled(name, graph, x)
    kept = x.clone()
    outputs = session.run(x)
    first = [output.clone() for output in outputs]
    assert torch.equal(outputs[2], x)
    assert len({tensor.data_ptr() for tensor in (*outputs, x)}) == 4
    for output in outputs:
        output.mul_(0).sub_(9)
    assert torch.equal(x, kept)
    assert all(torch.equal(a, b) for a, b in zip(first, session.run(x), strict=True))


@pytest.mark.parametrize("name", EXACT)
def test_any_memory_layout_goes_in(name: str, assert_close: Compare) -> None:
    graph = vocabulary.compact()
    wide = torch.rand(1, 5, 7, 18)
    for x in (wide[:, 1:4, :, ::2], wide[:, :3, :, :9].contiguous(memory_format=torch.channels_last)):
        (expected,) = graph.evaluate(x)
        assert_close(compiled(name, graph, x).run(x)[0], expected, max_abs=1e-5, what=name)


@pytest.mark.parametrize("name", EXACT)
def test_a_batch_is_as_good_as_its_images(name: str, assert_close: Compare) -> None:
    graph = vocabulary.stylised()
    x = torch.rand(3, 3, 9, 11)
    (expected,) = graph.evaluate(x)
    assert_close(compiled(name, graph, x).run(x)[0], expected, max_abs=1e-4, what=name)


@pytest.mark.parametrize("op", [Mean((0,)), Reshape((1, -1))])
def test_ncnn_refuses_to_mix_the_images_of_a_batch(op: Mean | Reshape) -> None:
    graph = Graph((Input("x", (None, 3, 4, 4)),), (Node(op, ("x",), "y"),), ("y",))
    with pytest.raises(BackendError, match="batch"):
        compiled("ncnn", graph, torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize("name", EXACT)
def test_another_shape_is_an_error(name: str) -> None:
    session = compiled(name, vocabulary.compact(), torch.rand(1, 3, 5, 7))
    with pytest.raises(ModelError, match="compiled for inputs of 1x3x5x7; 1x3x7x5 were given"):
        session.run(torch.rand(1, 3, 7, 5))


@pytest.mark.parametrize("name", EXACT)
def test_a_shape_that_no_op_takes_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="pad"):
        compiled(name, vocabulary.stylised(), torch.rand(1, 3, 1, 1))


class Uncaptured(nn.Module):
    """A module whose op lies outside the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"image": self.drop(self.conv(x)).cumsum(-1), "flat": x.mean()}


def test_modules_without_a_graph_run_in_torch_only(assert_close: Compare) -> None:
    module = Uncaptured().train()
    model = Model("odd", "0", uncaptured="cumsum is outside the vocabulary", module=module)
    x = torch.rand(1, 3, 5, 6)
    outputs = compiled("torch_eager", model, x).run(x)
    assert len(outputs) == 2
    assert_close(outputs[0], module.conv(x).cumsum(-1).detach(), what="module")
    assert module.training
    for name in ("onnxruntime", "openvino", "ncnn"):
        assert "cumsum" in (registry.get(name).refusal(model, "cpu", "fp32") or "")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_onnx_models_without_a_graph_run_in_the_onnx_engines(name: str, assert_close: Compare) -> None:
    from tilefuse.emitters.onnx import to_onnx

    graph = vocabulary.rrdb()
    model = Model("rrdb.onnx", "0", uncaptured="an op of a later opset", onnx=to_onnx(graph).SerializeToString())
    x = torch.rand(1, 3, 6, 5)
    assert_close(compiled(name, model, x).run(x)[0], graph.evaluate(x)[0], max_abs=1e-5, what=name)
    for other in ("torch_eager", "inductor", "ncnn"):
        assert registry.get(other).refusal(model, "cpu", "fp32")
    model = replace(model, onnx=(model.onnx or b"")[:200])
    with pytest.raises(BackendError, match=f"{name} can't compile this model"):
        compiled(name, model, x)


@pytest.mark.parametrize("name", ["torch_eager", "openvino"])
def test_bf16_stays_above_50_db_on_a_photograph(name: str) -> None:
    from skimage.data import chelsea

    graph = from_module(load_bundled("espcn-x4")[0], torch.rand(1, 3, 16, 16))
    x = torch.from_numpy(chelsea()[60:156, 100:228].copy()).permute(2, 0, 1).unsqueeze(0) / 255
    (expected,) = graph.evaluate(x)
    (actual,) = compiled(name, graph, x, precision="bf16").run(x)
    assert actual.dtype == torch.float32
    psnr = -10 * (actual - expected).square().mean().log10().item()
    print(f"{name} bf16: {psnr:.1f} dB, max {(actual - expected).abs().max():.2e}")
    assert psnr >= 50


def test_the_precision_asked_for_is_the_one_computed_in() -> None:
    """OpenVINO takes bf16 by itself where the machine has it: fp32 must not."""
    graph, x = vocabulary.rrdb(), torch.rand(1, 3, 16, 16)
    (expected,) = graph.evaluate(x)
    (exact,) = compiled("openvino", graph, x).run(x)
    assert (exact - expected).abs().max() < 1e-5


def test_fp32_is_exact_whatever_torch_was_told_before() -> None:
    seen = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return x + 1

    x = torch.randn(1, 3, 2, 2)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for precision in ("fp32", "bf16"):
            compiled("torch_eager", Model("watching", "0", module=Watching()), x, precision=precision).run(x)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [("highest", False), ("medium", torch.backends.cudnn.allow_tf32)]


def test_exact_fp32_puts_back_what_it_found_when_its_last_user_leaves() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    first, second = exact_fp32(), exact_fp32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.cudnn.allow_tf32
    second.__exit__(None, None, None)
    after = torch.backends.cudnn.allow_tf32, torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    assert after == before


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            MemoryError,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError),
        (torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory"), MemoryError),
        (torch.AcceleratorError("CUDA error: out of memory"), MemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), MemoryError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), MemoryError),
        (RuntimeError("Triton Error [CUDA]: out of memory"), MemoryError),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), DeviceError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceError),
        (RuntimeError("std::bad_alloc"), MemoryError),
        (MemoryError(), MemoryError),
        (RuntimeError("\n  CUDA error: an illegal access\nmore"), DeviceError),
    ],
)
def test_failures_have_names(error: Exception, kind: type[Exception]) -> None:
    named = library.failure("engine", error)
    assert type(named) is kind
    assert "\n" not in str(named)


def test_torch_failures_while_running_have_names() -> None:
    class Huge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_empty(1 << 60)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.new_empty(7)

    x = torch.rand(1, 3, 2, 2)
    with pytest.raises(MemoryError, match="torch_eager ran out of memory"):
        compiled("torch_eager", Model("huge", "0", module=Huge()), x).run(x)
    with pytest.raises(DeviceError, match="torch_eager failed while running"):
        compiled("torch_eager", Model("broken", "0", module=Broken()), x).run(x)


@pytest.mark.parametrize(("status", "kind"), [(-100, MemoryError), (-1, DeviceError)])
def test_ncnn_failures_have_names(status: int, kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 3, 4, 4)
    session = compiled("ncnn", vocabulary.compact(), x)
    assert isinstance(session, ncnn.NcnnSession)
    failing = types.SimpleNamespace(input=lambda *_: 0, extract=lambda _: (status, None))
    net = types.SimpleNamespace(create_extractor=lambda: failing)
    with pytest.raises(kind, match="ncnn"):
        ncnn.NcnnSession(session.ncnn, net, session.network, session.shapes).run(x)


def test_onnxruntime_leaves_the_processor_to_others_soon() -> None:
    session = compiled("onnxruntime", vocabulary.compact(), torch.rand(1, 3, 6, 5))
    assert isinstance(session, onnxruntime.OnnxRuntimeSession)
    options = session.session.get_session_options()
    assert int(options.get_session_config_entry("session.intra_op.spin_duration_us")) <= 1000


def test_onnxruntime_never_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    real = library.load("onnxruntime")
    session = types.SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    faked = types.SimpleNamespace(
        SessionOptions=real.SessionOptions,
        GraphOptimizationLevel=real.GraphOptimizationLevel,
        InferenceSession=lambda *_, **__: session,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    model = Model("compact", "0", graph=vocabulary.compact())
    reason = registry.get("onnxruntime").refusal(model, "cuda", "fp32")
    assert reason is None or "tilefuse[gpu]" in reason
    monkeypatch.setattr(onnxruntime, "load", lambda _: faked)
    with pytest.raises(BackendError, match="fell back to CPUExecutionProvider"):
        registry.get("onnxruntime").compile(model, [(1, 3, 4, 4)], device="cuda", precision="fp32", threads=1)


def test_inductor_serves_from_any_thread_without_compiling_again(assert_close: Compare) -> None:
    graph = vocabulary.compact(depth=1)
    inputs = [torch.rand(1, 3, 9, 11) for _ in range(8)]
    session = compiled("inductor", graph, inputs[0])

    def run(x: Tensor) -> Tensor:
        # A thread of its own starts with other settings; torch.compile would compile again.
        torch.set_num_threads(2)
        return session.run(x.contiguous(memory_format=torch.channels_last))[0]

    with torch.compiler.set_stance("fail_on_recompile"), ThreadPoolExecutor(8) as pool:
        results = list(pool.map(run, inputs))
    for x, result in zip(inputs, results, strict=True):
        assert_close(result, graph.evaluate(x)[0], max_abs=1e-5, what="inductor")
        result.zero_()


def test_inductor_names_what_it_can_not_trace() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(BackendError, match=r"inductor can't compile this model: .+") as caught:
        compiled("inductor", Model("branching", "0", module=Branching()), torch.rand(1, 3, 2, 2))
    assert "\n" not in str(caught.value)


def test_openvino_tells_nobody_of_its_use(tmp_path: Path) -> None:
    """Imported by itself it sends an event over the network from a forked process and leaves an identity at home."""
    pytest.importorskip("openvino")
    script = """
import os, sys, threading
told = []
sys.addaudithook(lambda event, _: told.append(event) if event in ("os.fork", "urllib.Request") else None)
from tilefuse.backends.library import load
load("openvino").Core()
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(20)
assert not told, told
assert os.listdir(os.environ["HOME"]) == []
assert "openvino_telemetry" not in sys.modules
"""
    # On machines that say they are CI it tells nobody of itself.
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
