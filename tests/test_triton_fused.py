"""The Triton backend: every network lowers to kernels alone, tiles are the same bits as the whole, and refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tilefuse
from tests import models, vocabulary
from tests.conftest import Compare
from tilefuse.backends import registry
from tilefuse.backends.base import Precision, Session
from tilefuse.backends.triton.lowering import lower
from tilefuse.backends.triton.session import TritonPixelSession, bind
from tilefuse.backends.triton_fused import DTYPES, TritonFused
from tilefuse.capture import from_module
from tilefuse.commands.describe import describe_model
from tilefuse.errors import BackendError, ModelError
from tilefuse.export.architectures import ARCHITECTURES, infer
from tilefuse.export.checkpoints import bundled
from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.generators.stylenet import TransformerNet
from tilefuse.graph import Graph, Input, Node
from tilefuse.model import Model
from tilefuse.ops import Binary, Mean, Pool2d, Resize
from tilefuse.source import load_model

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]
BACKEND = TritonFused()


def compiled(graph: Graph, *inputs: Tensor, precision: Precision = "fp32") -> Session:
    shapes = [tuple(x.shape) for x in inputs]
    return BACKEND.compile(Model("tried", "0", graph=graph), shapes, device="cpu", precision=precision, threads=1)


def captured(name: str) -> tuple[Graph, Tensor]:
    module, x = models.build(name)
    with torch.no_grad():
        return from_module(module, x), x


def lowered_shapes(graph: Graph, size: int) -> list[tuple[int, ...]]:
    return [tuple(known or (size if i >= 2 else 2) for i, known in enumerate(spec.shape)) for spec in graph.inputs]


FAMILIES = {a.name: a for a in ARCHITECTURES}


@pytest.mark.parametrize("name", [*FAMILIES, "style", "unet", "dense", "squeeze-excite", "rrdbnet-unshuffle"])
def test_every_network_of_the_zoo_lowers_to_kernels(name: str) -> None:
    """Every architecture at its smallest, and the families with options that change the graph."""
    if name in FAMILIES:
        module = FAMILIES[name].module(**FAMILIES[name].example).eval()
        described = infer(module.state_dict(), {"scale": "2"} if name == "FSRCNN" else {})
        shapes = list(described.inputs.values()) or [(described.in_channels, 64, 64)]
        examples = [torch.rand(2, *shape) for shape in shapes]
    else:
        module, example = models.build(name)
        examples = [example]
    with torch.no_grad():
        graph = from_module(module, *examples)
    program = lower(graph, [tuple(x.shape) for x in examples], torch.float16)
    assert program.calls
    assert program.torch_ops == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", bundled())
def test_every_bundled_model_lowers_to_kernels(name: str) -> None:
    model = load_model(name)
    assert model.graph is not None
    assert lower(model.graph, lowered_shapes(model.graph, 64), torch.float16).torch_ops == ()
    assert BACKEND.notes(model) == ("it runs in Triton's interpreter, which is slow",)


def test_an_op_without_a_kernel_runs_in_torch_and_is_listed(assert_close: Compare) -> None:
    graph = vocabulary.Builder()
    graph.add(Mean((1,)), graph.act(graph.conv("x", 3, 4), "relu"))
    built = graph.graph(graph.conv(graph.nodes[-1].output, 1, 2))
    x = torch.rand(1, 3, 5, 7)
    assert_close(compiled(built, x).run(x)[0], built.evaluate(x)[0], what="mean over channels")
    assert lower(built, [(1, 3, 5, 7)], torch.float32).torch_ops == ("mean (v2)",)
    (_, note) = BACKEND.notes(Model("averaging", "0", graph=built))
    assert note == "torch runs mean (v2): no kernel serves it"


@pytest.mark.parametrize("halvings", [3, 6, 8])
def test_what_torch_runs_is_told_of_networks_that_halve_many_times(halvings: int) -> None:
    """Only images of whole multiples of 2^halvings fit their skips."""
    graph = vocabulary.Builder()
    name = graph.add(Mean((1,)), graph.conv("x", 3, 4))
    deep = name
    for _ in range(halvings):
        deep = graph.add(Pool2d("max", (2, 2), (2, 2)), deep)
    for _ in range(halvings):
        deep = graph.add(Resize("nearest", (Fraction(2), Fraction(2))), deep)
    built = graph.graph(graph.conv(graph.add(Binary("add"), name, deep), 1, 2))
    assert BACKEND.notes(Model("deep", "0", graph=built))[1:] == (f"torch runs mean ({name}): no kernel serves it",)


def test_what_torch_runs_is_told_by_info_and_explain(tmp_path: Path) -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return y - y.mean(1, keepdim=True)

    engine = tilefuse.load(Averaging(), backend="triton_fused")
    explained = str(engine.plan(8, 9))
    assert "no kernel serves it" in explained
    assert "Triton's interpreter, which is slow" in explained
    tilefuse.export.to_onnx(Averaging(), tmp_path / "averaging.onnx")
    told = describe_model(str(tmp_path / "averaging.onnx"))
    assert "no kernel serves it" in str(told["notes"]["triton_fused"])


SMALL = ("dense", "espcn", "compact", "fsrcnn", "unet", "dcgan", "dcgan-1x1", "style", "squeeze-excite", "weight-norm")


@pytest.mark.parametrize("name", SMALL)
def test_networks_are_right(name: str, assert_close: Compare) -> None:
    graph, x = captured(name)
    for actual, expected in zip(compiled(graph, x).run(x), graph.evaluate(x), strict=True):
        assert_close(actual, expected, max_abs=1e-5 * max(1.0, expected.abs().max().item()), what=name)


def test_reflected_enlargements_and_norms_in_prologues_are_right(assert_close: Compare) -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 12, 16)
    with torch.no_grad():
        graph = from_module(TransformerNet((4, 4, 8), blocks=1, img_range=1.0).eval(), x)
    assert_close(compiled(graph, x).run(x)[0], graph.evaluate(x)[0], max_abs=2e-5, what="style")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(models.MODELS) - set(SMALL)))
def test_more_networks_are_right(name: str, assert_close: Compare) -> None:
    test_networks_are_right(name, assert_close)


CASES = {
    group: getattr(vocabulary, group)() for group in ("convolutions", "pointwise", "layout", "resizing", "networks")
}


@pytest.mark.slow
@pytest.mark.parametrize("group", CASES)
def test_every_op_is_right(group: str, assert_close: Compare) -> None:
    """Each op of the vocabulary with its attributes."""
    for label, graph in CASES[group].items():
        if group == "resizing" and ("symmetric" in label or "pytorch" in label):
            continue  # The tables of every convention are tested with the kernel.
        inputs = vocabulary.example_inputs(graph)
        for actual, expected in zip(compiled(graph, *inputs).run(*inputs), graph.evaluate(*inputs), strict=True):
            assert_close(actual, expected, max_abs=1e-5 * max(1.0, expected.abs().max().item()), what=label)


def tiled_and_whole(module: nn.Module, image: np.ndarray, tile: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    engines = [tilefuse.load(module, backend="triton_fused", precision="fp32", tile=size) for size in (tile, 0)]
    assert [engine.plan(*image.shape[:2]).windows > 1 for engine in engines] == [True, False]
    tiled, whole = (engine(image) for engine in engines)
    return tiled, whole


@pytest.mark.parametrize("name", ["espcn", "compact", "rrdb", "u-net"])
def test_tiled_is_the_same_bits_as_the_whole(name: str) -> None:
    torch.manual_seed(0)
    built: dict[str, tuple[nn.Module, tuple[int, int], int]] = {
        "espcn": (ESPCN(2, features=(8, 4)), (13, 19), 5),
        "compact": (SRVGGNetCompact(num_feat=8, num_conv=1, upscale=2), (11, 16), 5),
        "rrdb": (models.dense(), (9, 13), 3),
        "u-net": (SmallUNet(), (16, 24), 8),
    }
    module, size, tile = built[name]
    if name == "rrdb":
        module = nn.Sequential(nn.Conv2d(3, 4, 1), module, nn.Conv2d(4, 3, 1))
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    tiled, whole = tiled_and_whole(module.eval(), image, tile)
    assert np.array_equal(tiled, whole)


class SmallUNet(nn.Module):
    """Two levels, with a pool, a transposed convolution and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.low = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.leave = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        top = torch.relu(self.enter(x))
        low = torch.relu(self.low(nn.functional.max_pool2d(top, 2)))
        return self.leave(torch.cat([top, self.up(low)], 1))


def test_an_image_has_the_same_bits_in_any_batch() -> None:
    for name in ("dcgan", "style"):
        graph, x = captured(name)
        x = torch.cat([x, x + 0.1])
        (together,) = compiled(graph, x).run(x)
        (alone,) = compiled(graph, x[1:2]).run(x[1:2])
        assert torch.equal(alone, together[1:2])


def test_a_session_is_shared_by_threads_and_gives_its_results_away() -> None:
    graph, _ = captured("espcn")
    inputs = [torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    session = compiled(graph, inputs[0])
    serial = [session.run(x)[0] for x in inputs]
    kept = [result.clone() for result in serial]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda x: session.run(x)[0], inputs))
    assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))
    serial[0].zero_()
    assert all(torch.equal(a, b) for a, b in zip(serial[1:], kept[1:], strict=True))
    assert torch.equal(session.run(inputs[0])[0], kept[0])
    wide = torch.rand(1, 5, 6, 14)
    (expected,) = graph.evaluate(wide[:, 1:4, :, ::2])
    assert (session.run(wide[:, 1:4, :, ::2])[0] - expected).abs().max() < 1e-5


def test_outputs_may_be_inputs_weights_and_each_other() -> None:
    node = Node(Binary("add"), ("x", "w"), "y")
    graph = Graph((Input("x", (None, 2, None, None)),), (node,), ("y", "y", "x", "w"), {"w": torch.rand(2, 1, 1)})
    x = torch.rand(1, 2, 3, 4)
    results = compiled(graph, x).run(x)
    assert all(torch.equal(a, b) for a, b in zip(results, graph.evaluate(x), strict=True))
    assert len({result.data_ptr() for result in results}) == 4


def test_integer_pixels_go_in_and_out_as_they_lie() -> None:
    graph, _ = captured("espcn-residual")
    model = Model("espcn", "0", graph=graph)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 9, 8, 3), np.uint8)
    session = BACKEND.compile_pixels(model, (1, 3, 9, 8), np.dtype(np.uint8), device="cpu", precision="fp32", threads=1)
    made, finite = session.run(pixels)
    (expected,) = graph.evaluate(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    rounded = (expected * 255).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    assert finite
    assert made.shape == rounded.shape
    assert np.abs(made.astype(int) - rounded).max() <= 1
    assert (made == rounded).mean() > 0.99
    with pytest.raises(BackendError, match="compiled for pixels"):
        session.run(pixels[:, :5])
    with pytest.raises(BackendError, match="takes uint8 and uint16 pixels, not float32"):
        BACKEND.compile_pixels(model, (1, 3, 9, 8), np.dtype("f4"), device="cpu", precision="fp32", threads=1)


def narrow() -> nn.Module:
    """Sixteen features to three channels: four pixels of the result are a row of the product."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 3, 3, padding=1))


U8, U16 = torch.uint8, torch.uint16
# Network, precision, height and width, the pixels, and whether its own kernels read and write them.
ENDS: tuple[tuple[str, Precision, tuple[int, int], torch.dtype, bool, bool], ...] = (
    ("espcn x2", "fp16", (3, 4), U8, True, True),
    ("espcn x3", "fp16", (3, 4), U8, True, False),
    ("espcn x2", "fp32", (2, 4), U16, True, True),
    ("compact", "fp16", (2, 3), U8, False, True),
    ("narrow", "fp32", (2, 8), U8, True, True),
    ("narrow", "fp32", (2, 5), U8, True, False),
)


@pytest.mark.parametrize(("name", "precision", "size", "kind", "reads", "writes"), ENDS)
def test_pixels_have_the_bits_of_a_load_the_network_and_a_store(
    name: str, precision: Precision, size: tuple[int, int], kind: torch.dtype, reads: bool, writes: bool
) -> None:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        "espcn x2": ESPCN(2, features=(8, 4)), "espcn x3": ESPCN(3, features=(8, 4)), "narrow": narrow(),
        "compact": SRVGGNetCompact(num_feat=8, num_conv=1, upscale=2),
    }  # fmt: skip
    shape, computed, dtype = (1, 3, *size), DTYPES[precision], np.dtype(str(kind).removeprefix("torch."))
    with torch.no_grad():
        graph = from_module(made[name].eval(), torch.rand(shape))
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (1, *size, 3), dtype)
    spoilt = replace(graph, weights={key: tensor * torch.nan for key, tensor in graph.weights.items()})
    for tried in (graph, spoilt) if reads and precision == "fp16" else (graph,):
        fused, apart = lower(tried, [shape], computed, pixels=kind), lower(tried, [shape], computed)
        assert fused.inputs[0].dtype == (kind if reads else computed)
        assert fused.outputs[0].dtype == (kind if writes else computed)
        sessions = [TritonPixelSession(bind(program, "cpu"), dtype) for program in (fused, apart)]
        (ours, finite), (theirs, as_finite) = (session.run(pixels) for session in sessions)
        assert np.array_equal(ours, theirs)
        assert finite == as_finite == (tried is graph)
        # A second run neither keeps the flag of the first nor writes into what it gave away.
        kept = ours.copy()
        again, _ = sessions[0].run(255 - pixels)
        assert np.array_equal(ours, kept)
        assert not np.shares_memory(ours, again)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_half_that_overflows_is_run_again_in_fp32(dtype: type) -> None:
    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.quiet(self.loud(x))

        def __init__(self) -> None:
            super().__init__()
            self.loud, self.quiet = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
            nn.init.dirac_(self.loud.weight)
            nn.init.dirac_(self.quiet.weight)
            self.loud.weight.data *= 65000
            self.quiet.weight.data /= 65000

    loud = Loud()
    if dtype == np.uint8:
        loud.loud.bias = nn.Parameter(torch.full((3,), 10000.0))
        loud.quiet.bias = nn.Parameter(torch.full((3,), -10000.0 / 65000))
    # In fp32 it is the identity; in between lies what half precision can't hold.
    engine = tilefuse.load(loud, backend="triton_fused", precision="fp16", tile=0)
    image = np.full((4, 5, 3), 255 if dtype == np.uint8 else 3, dtype)
    picture = tilefuse.images.picture_from_array(image)
    result, _, execution = engine.run_picture(picture)
    assert np.allclose(tilefuse.images.picture_to_array(result, like=image), image)
    assert execution.rerun_fp32 == 1


def test_half_precision_is_close(assert_close: Compare) -> None:
    graph, x = captured("espcn")
    (actual,) = compiled(graph, x, precision="fp16").run(x)
    assert actual.dtype == torch.float32
    assert_close(actual, graph.evaluate(x)[0], max_abs=2e-3, what="fp16")


def test_refusals_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = captured("espcn")
    model = Model("espcn", "0", graph=graph)
    assert BACKEND.available() is None
    assert "runs on cuda, not on tpu" in (BACKEND.refusal(model, "tpu", "fp32") or "")
    assert "no CUDA device" in (BACKEND.refusal(model, "cuda", "fp32") or "")
    assert "rounds bf16 wrongly" in (BACKEND.refusal(model, "cpu", "bf16") or "")
    uncaptured = Model("odd", "0", uncaptured="cumsum is outside the vocabulary")
    assert "cumsum" in (BACKEND.refusal(uncaptured, "cpu", "fp32") or "")
    session = compiled(graph, x)
    with pytest.raises(ModelError, match="compiled for inputs of 1x3x9x8; 1x3x8x9 were given"):
        session.run(torch.rand(1, 3, 8, 9))
    with pytest.raises(ModelError, match="pad"):
        compiled(vocabulary.stylised(), torch.rand(1, 3, 1, 1))
    monkeypatch.delenv("TRITON_INTERPRET")
    if not torch.cuda.is_available():
        assert "need an NVIDIA GPU" in (BACKEND.available() or "")
    monkeypatch.setattr("tilefuse.backends.triton_fused.find_spec", lambda _: None)
    assert "triton is not installed" in (BACKEND.available() or "")


def test_no_images_give_no_images() -> None:
    graph, _ = captured("espcn")
    empty = torch.empty(0, 3, 5, 4)
    (result,) = compiled(graph, empty).run(empty)
    assert result.shape == (0, 3, 15, 12)


def test_auto_never_interprets() -> None:
    assert "triton_fused" not in registry.automatic()
    engine = tilefuse.load(ESPCN(2, features=(4, 4)), device="cpu")
    assert "triton_fused" not in [serving.backend for serving in engine.candidates]


def test_the_engine_imports_and_says_why_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "import tilefuse.kernels.conv2d, tilefuse.kernels.elementwise, tilefuse.backends.triton.lowering\n"
        "from tilefuse.backends.registry import BACKENDS\n"
        "print(BACKENDS['triton_fused'].available())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert "triton is not installed" in told
