"""fp16 and int8 exports: what stays in fp32, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tilefuse
from tests.exporting import dims, onnx, ops, session, tiny, tracing_once
from tilefuse.errors import ExportError, ImageError, UsageError
from tilefuse.export import to_onnx
from tilefuse.export.onnx_inputs import Signature, Slot
from tilefuse.export.onnx_precision import to_fp16
from tilefuse.export.onnx_quantise import calibration_samples
from tilefuse.export.onnx_verify import ort_session

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tracing_once")]
__all__ = ["tracing_once"]

HALF, FULL = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def weight_types(path: Path) -> set[int]:
    return {tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 4}


@pytest.mark.parametrize(("keep", "outer"), [(False, HALF), (True, FULL)])
def test_fp16_weights_and_the_inputs_asked_for(keep: bool, outer: int, tmp_path: Path) -> None:
    report = to_onnx(tiny(), tmp_path / "h.onnx", precision="fp16", keep_fp32_io=keep)
    graph = onnx.load(report.path).graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {outer}
    assert weight_types(report.path) == {HALF}
    assert ops(report.path).count("Cast") == (2 if keep else 0)
    assert dims(graph.output[0])[2] == "2*height"
    assert report.psnr_db >= 45
    assert report.max_abs > 1e-6, "fp16 must differ from fp32"
    assert report.kept_fp32 == 0


class Overflowing(nn.Module):
    """Passes through values of up to 3e5 and comes back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.last(torch.relu(self.conv(x) * 3e5 + 2e5) / 3e5))


@pytest.mark.thorough
def test_nodes_that_would_overflow_stay_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = to_onnx(Overflowing().eval(), tmp_path / "o.onnx", precision="fp16")
    # The product, the sum, the activation and the division.
    assert report.kept_fp32 == 4
    assert ops(report.path).count("Cast") == 2
    assert weight_types(report.path) == {HALF}
    monkeypatch.setattr("tilefuse.export.onnx.overflowing", lambda model, samples: frozenset())
    with pytest.raises(ExportError, match=r"not finite|differ"):
        to_onnx(Overflowing().eval(), tmp_path / "n.onnx", precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["o.onnx"]


def test_sums_over_the_image_stay_in_fp32() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[batch, 2, height, width] image) => (float[batch, 2, height, width] image_out)
        <float[2] scale = {1.5, 0.5}, float[2] shift = {0.25, -1.0}>
        {
            normed = InstanceNormalization(image, scale, shift)
            image_out = Relu(normed)
        }
    """)
    half, kept = to_fp16(model, frozenset(), keep_fp32_io=False)
    onnx.checker.check_model(half, full_check=True)
    assert kept == 1
    assert [node.op_type for node in half.graph.node] == ["Cast", "InstanceNormalization", "Cast", "Relu"]
    assert {tensor.data_type for tensor in half.graph.initializer} == {FULL}
    # Each value squared is past fp16's largest; their sums are far past.
    image = np.random.default_rng(0).normal(0, 3e4, (1, 2, 40, 40)).clip(-6e4, 6e4).astype(np.float16)
    expected = ort_session(model.SerializeToString()).run(None, {"image": image.astype(np.float32)})[0]
    actual = ort_session(half.SerializeToString()).run(None, {"image": image})[0]
    assert np.abs(actual - expected).max() < 4e-3


def test_an_fp16_file_loads_back(tmp_path: Path) -> None:
    module = tiny()
    path = to_onnx(module, tmp_path / "h.onnx", precision="fp16").path
    image = np.random.default_rng(0).random((21, 18, 3), np.float32)
    expected = tilefuse.load(module, backend="torch_eager")(image)
    assert np.abs(tilefuse.load(path, backend="torch_eager", tile=8)(image) - expected).max() < 2e-3


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Make a folder of smooth pictures, one of them gray, one too small."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    y, x = np.mgrid[0:40, 0:48].astype(np.float32)
    for i in range(3):
        planes = [np.sin(x / (3 + i + c) + i) * np.cos(y / (4 + c)) * 100 + 128 for c in range(3)]
        Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(folder / f"{i}.png")
    Image.fromarray(planes[0].astype(np.uint8)).save(folder / "gray.png")
    Image.new("RGB", (1, 1)).save(folder / "small.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_int8_is_quantised_and_near(pictures: Path, tmp_path: Path) -> None:
    report = to_onnx("espcn-x2", tmp_path / "q.onnx", precision="int8", calibration=pictures)
    found = ops(report.path)
    assert found.count("QuantizeLinear") >= 3
    assert found.count("DequantizeLinear") >= found.count("QuantizeLinear")
    initializers = {tensor.name: tensor for tensor in onnx.load(report.path).graph.initializer}
    convolutions = [node for node in onnx.load(report.path).graph.node if node.op_type == "Conv"]
    makers = {node.output[0]: node for node in onnx.load(report.path).graph.node}
    kernels = [initializers[makers[node.input[1]].input[0]] for node in convolutions]
    assert [tensor.data_type for tensor in kernels] == [onnx.TensorProto.INT8] * 3
    assert 38 <= report.psnr_db < 80
    assert session(report.path).run(None, {"image": np.zeros((1, 3, 5, 7), np.float32)})[0].shape == (1, 3, 10, 14)
    assert report.inputs["image"] == ("batch", 3, "height", "width")
    again = tilefuse.load(report.path)
    assert again(np.zeros((5, 7, 3), np.uint8)).shape == (10, 14, 3)
    assert (again.footprint.halo, again.footprint.global_ops) == (4, ())


def test_int8_that_loses_too_much_is_refused(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilefuse.export import onnx as export

    honest = export.quantise
    # Calibrated on pictures eight times too dark, it clips.
    monkeypatch.setattr(export, "quantise", lambda m, s: honest(m, [tuple(x / 8 for x in sample) for sample in s]))
    with pytest.raises(ExportError, match="38 dB"):
        to_onnx("espcn-x2", tmp_path / "q.onnx", precision="int8", calibration=pictures)
    assert not (tmp_path / "q.onnx").exists()


def test_crops_are_aligned_and_some_are_held_out(pictures: Path) -> None:
    signature = Signature((Slot("image", (3, None, None)),), alignment=16, minimum_px=16)
    calibrating, held = calibration_samples(signature, pictures)
    assert (len(calibrating), len(held)) == (6, 2)
    assert {tuple(x.shape) for (x,) in (*calibrating, *held)} == {(1, 3, 32, 48)}
    calibrating, held = calibration_samples(Signature((Slot("image", (3, None, None)),), minimum_px=7), pictures)
    assert not any(torch.equal(x, y) for (x,) in calibrating for (y,) in held)


def test_a_mask_beside_the_colours_is_drawn(pictures: Path) -> None:
    calibrating, _ = calibration_samples(Signature((Slot("image", (4, None, None)),)), pictures)
    mask = calibrating[0][0][:, 3]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert calibrating[0][0].shape[1] == 4


def test_calibration_says_what_it_lacks(pictures: Path, tmp_path: Path) -> None:
    image, latent = Signature((Slot("image", (3, None, None)),)), Signature((Slot("latent", (4,)),))
    (tmp_path / "empty").mkdir()
    for folder, word in (
        (None, "--calibration"),
        (tmp_path / "none", "no folder"),
        (tmp_path / "empty", "no pictures"),
    ):
        with pytest.raises(UsageError, match=word):
            calibration_samples(image, folder)
    with pytest.raises(UsageError, match="leave --calibration out"):
        calibration_samples(latent, pictures)
    with pytest.raises(UsageError, match="two at least"):
        calibration_samples(Signature((Slot("image", (3, None, None)),), minimum_px=64), pictures)
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImageError):
        calibration_samples(image, pictures)
    calibrating, held = calibration_samples(latent, None)
    assert len(calibrating) == 64
    assert held[0][0].shape == (16, 4)
