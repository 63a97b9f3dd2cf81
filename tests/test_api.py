"""The engine as a caller meets it: every kind of image, every option, many threads."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tilefuse
from tilefuse.backends import registry
from tilefuse.errors import BackendError, CapacityError, ImageError, ModelError, UsageError
from tilefuse.images import picture_from_array

MODEL = "espcn-x4"


@pytest.fixture(scope="module")
def engine() -> tilefuse.Engine:
    return tilefuse.load(MODEL)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.coffee()[100:190, 200:330])


def test_footprint_of_the_bundled_model(engine: tilefuse.Engine) -> None:
    assert (engine.footprint.halo, engine.scale, engine.footprint.alignment) == (4, 4, 1)
    assert engine.footprint.global_ops == ()


def test_every_kind_of_image_comes_back_as_its_kind(engine: tilefuse.Engine, photograph: np.ndarray) -> None:
    rgb = engine(photograph)
    assert (rgb.shape, rgb.dtype) == ((360, 520, 3), np.uint8)
    assert np.array_equal(np.asarray(engine(Image.fromarray(photograph))), rgb)
    tensor = torch.from_numpy(photograph).permute(2, 0, 1)
    assert np.array_equal(engine(tensor).permute(1, 2, 0).numpy(), rgb)
    batch = engine(torch.stack([tensor, tensor]))
    assert batch.shape == (2, 3, 360, 520)
    assert torch.equal(batch[0], batch[1])
    real = engine(photograph.astype(np.float32) / 255)
    assert real.dtype == np.float32
    assert np.abs(real.clip(0, 1) * 255 - rgb).max() <= 0.5 + 1e-3
    deep = engine(photograph.astype(np.uint16) * 257)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257.0 - rgb).max() <= 0.51
    gray = engine(photograph[..., 0])
    assert gray.shape == (360, 520)
    rgba = engine(np.dstack([photograph, photograph[..., 0]]))
    assert rgba.shape == (360, 520, 4)


def test_float_images_leave_the_network_unclipped(engine: tilefuse.Engine) -> None:
    edge = np.zeros((16, 16, 3), np.float32)
    edge[:, 8:] = 1.0
    result = engine(edge)
    assert result.min() < 0 or result.max() > 1


@pytest.mark.parametrize("backend", registry.automatic())
def test_tiled_equals_whole_on_every_backend(backend: str, photograph: np.ndarray) -> None:
    if registry.get(backend).available():
        pytest.skip(str(registry.get(backend).available()))
    image = photograph.astype(np.float32) / 255
    whole = tilefuse.load(MODEL, backend=backend, tile=0)(image)
    tiled = tilefuse.load(MODEL, backend=backend, tile=40)(image)
    reference = tilefuse.load(MODEL, backend="torch_eager", tile=0)(image)
    tiling, error = np.abs(tiled - whole), np.abs(whole - reference)
    print(f"{backend}: tiled-whole max {tiling.max():.2e}, to torch fp32 max {error.max():.2e} rms {error.std():.2e}")
    assert tiling.max() <= 1e-5
    assert error.max() <= 1e-4


def test_sizes_down_to_one_pixel(engine: tilefuse.Engine) -> None:
    for height, width in ((1, 1), (1, 9), (7, 1), (2, 3)):
        assert engine(np.full((height, width, 3), 128, np.uint8)).shape == (4 * height, 4 * width, 3)


def test_a_backend_that_cannot_compile_makes_way_and_is_named(
    photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tilefuse.load(MODEL)
    first, second = (registry.get(candidate.backend) for candidate in engine.candidates[:2])

    def refuse(*_: object, **__: object) -> None:
        raise BackendError("no room for this window")

    expected = tilefuse.load(MODEL, backend=second.name)(photograph)
    for name in ("compile", "compile_pixels"):
        monkeypatch.setattr(type(first), name, refuse, raising=False)
    _, plan, _ = engine.run_picture(picture_from_array(photograph))
    assert plan.backend == second.name
    assert any("no room for this window" in reason for reason in plan.why)
    assert np.array_equal(engine(photograph), expected)
    with pytest.raises(BackendError, match="no room"):
        tilefuse.load(MODEL, backend=first.name)(photograph)


def test_many_threads_equal_one(engine: tilefuse.Engine) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (20 + i % 3, 24, 3), np.uint8) for i in range(24)]
    serial = [engine(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        for expected, result in zip(serial, pool.map(engine, images), strict=True):
            assert np.array_equal(result, expected)


def test_transparent_colour_does_not_fringe(engine: tilefuse.Engine) -> None:
    y, x = np.mgrid[:48, :48]
    disc = (y - 24) ** 2 + (x - 24) ** 2 < 15**2
    image = np.zeros((48, 48, 4), np.uint8)
    image[..., 1] = 255
    image[disc] = (255, 0, 0, 255)
    image[~disc, 3] = 0
    result = engine(image).astype(float)
    alpha = result[..., 3:] / 255
    on_white = result[..., :3] * alpha + 255 * (1 - alpha)
    # Red on white has as much green as blue; green from under the transparency would stand out.
    assert np.abs(on_white[..., 1] - on_white[..., 2]).max() <= 24
    assert alpha.max() == 1
    assert alpha.min() == 0


def test_a_file_becomes_a_file(engine: tilefuse.Engine, photograph: np.ndarray, tmp_path: Path) -> None:
    source, output = tmp_path / "in.png", tmp_path / "out.webp"
    Image.fromarray(photograph).save(source, dpi=(72, 72))
    seen: list[tuple[int, int]] = []
    report = engine.run_file(source, output, progress=lambda done, total: seen.append((done, total)))
    assert Image.open(output).size == (520, 360)
    assert (report.plan.output_width, report.approximate, report.rerun_fp32) == (520, False, 0)
    assert seen[-1] == (report.windows, report.windows)
    with pytest.raises(UsageError, match="already exists"):
        engine.run_file(source, output)
    engine.run_file(source, output, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.png", "out.webp"]


class Exploding(nn.Module):
    """Overflows on images far out of range."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight.data.fill_(gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.conv(x)) * 1e-30


def test_overflow_in_fp32_is_an_error() -> None:
    broken = tilefuse.load(Exploding(1e15), backend="torch_eager")
    assert np.isfinite(broken(np.ones((8, 8, 3), np.float32))).all()
    with pytest.raises(tilefuse.DeviceError, match="not finite"):
        broken(np.full((8, 8, 3), 1e10, np.float32))


def test_a_module_outside_the_vocabulary_runs_whole() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * torch.softmax(self.conv(x).flatten(2), 2).reshape(x.shape)

    torch.manual_seed(0)
    module = Attention()
    engine = tilefuse.load(module)
    image = np.random.default_rng(0).random((12, 20, 3), np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(engine(image) - expected).max() <= 1e-6
    assert "softmax" in engine.footprint.global_ops[0]
    with pytest.raises(CapacityError, match="softmax"):
        tilefuse.load(module, tile=8)(image)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "cudnn"}, UsageError, "torch_eager"),
        ({"precision": "int4"}, UsageError, "bf16"),
        ({"device": "tpu"}, UsageError, "cuda:N"),
        ({"tile": "-3"}, UsageError, "number of input pixels"),
        ({"halo": "some"}, UsageError, "exact"),
        ({"schedule": "columns"}, UsageError, "windows or rows"),
        ({"schedule": "whole", "tile": 8}, UsageError, "contradict"),
        ({"memory": "plenty"}, UsageError, "768MiB"),
        ({"backend": "ncnn", "precision": "fp16"}, BackendError, "ncnn"),
    ],
)
def test_options_that_are_none(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tilefuse.load(MODEL, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 5), np.uint8), "C of 1 to 4"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (torch.zeros(4, 4), "NCHW|N, C, H, W"),
        (np.full((4, 4, 3), np.nan, np.float32), "NaN"),
        ("photo.png", "numpy array"),
    ],
)
def test_what_is_no_image(engine: tilefuse.Engine, image: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        engine(image)  # type: ignore[type-var]


def test_a_latent_decoder_takes_no_image() -> None:
    decoder = nn.Sequential(nn.Linear(8, 12), nn.Unflatten(1, (3, 2, 2)))
    engine = tilefuse.load(decoder)
    with pytest.raises(ModelError, match="can't run on an image"):
        engine(np.zeros((4, 4, 3), np.uint8))


def test_unknown_names_are_told() -> None:
    with pytest.raises(ModelError, match="espcn-x4"):
        tilefuse.load("espcn-x5")


def onnx_file(path: Path, *, gain: float = 1.0) -> Path:
    """Write a small ONNX network with a softmax, which no tile can hold."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.full((3, 3, 1, 1), gain, np.float32), "w")
    nodes = [helper.make_node("Conv", ["image", "w"], ["c"]), helper.make_node("Softmax", ["c"], ["out"], axis=3)]
    sizes = [1, 3, "h", "w_"]
    values = [[helper.make_tensor_value_info(name, kind, sizes)] for name in ("image", "out")]
    graph = helper.make_graph(nodes, "net", values[0], values[1], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_an_onnx_file_outside_the_vocabulary_runs_whole(tmp_path: Path) -> None:
    engine = tilefuse.load(onnx_file(tmp_path / "net.onnx"))
    image = np.random.default_rng(0).random((6, 8, 3), np.float32)
    total = torch.from_numpy(image).sum(2)
    expected = torch.softmax(total, 1).unsqueeze(2).expand(-1, -1, 3).numpy()
    assert np.abs(engine(image) - expected).max() <= 1e-6
    assert engine.serving.backend in ("openvino", "onnxruntime")
    assert "Softmax" in engine.footprint.global_ops[0]
    with pytest.raises(ModelError, match="Softmax"):
        tilefuse.load(onnx_file(tmp_path / "nan.onnx", gain=float("nan")))


def test_loading_leaves_a_module_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    tilefuse.load(module)
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def half_way(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_another_precision_runs_on_its_weights(dtype: torch.dtype) -> None:
    module = half_way(dtype)
    image = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = half_way(dtype).float().eval()(image[None])[0]
    assert (tilefuse.load(module)(image) - expected).abs().max() <= 1e-5
    assert {tensor.dtype for tensor in module.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (half_way(torch.float32).to("meta"), "no values yet"),
        (nn.Sequential(nn.LazyConv2d(3, 3)), "no values yet"),
        (half_way(torch.float32).state_dict(), "OrderedDict is no model"),
        (nn.Module, "not its class"),
        (None, "NoneType is no model"),
        (b"espcn-x4", "bytes is no model"),
    ],
)
def test_what_is_no_source_is_named(source: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        tilefuse.load(source)  # type: ignore[arg-type]


def test_an_engine_goes_to_other_processes(engine: tilefuse.Engine, photograph: np.ndarray) -> None:
    expected = engine(photograph)
    sent = pickle.loads(pickle.dumps(engine))  # noqa: S301 - our own
    assert np.array_equal(sent(photograph), expected)
    assert sent.options == engine.options
    with pytest.raises(TypeError):
        sent.model.graph.weights["new"] = torch.zeros(1)
    assert copy.deepcopy(engine) is engine
