"""Every bundled model in fp16, with and without fp32 inputs and outputs: verified, loaded back, and tiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tilefuse
from tests.exporting import onnx, tracing_once
from tilefuse.export import to_onnx
from tilefuse.export.checkpoints import bundled

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tracing_once")]
__all__ = ["tracing_once"]

# One in `make test`: all of them take minutes.
QUICK = ("espcn-x2",)
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in bundled()]
HALF, FULL = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
EDGES = pytest.mark.parametrize(("keep", "outer"), [(False, HALF), (True, FULL)], ids=["fp16 edges", "fp32 edges"])


def psnr_db(actual: Tensor, expected: Tensor) -> float:
    return -10 * (actual.double() - expected.double()).square().mean().clamp(min=1e-20).log10().item()


@EDGES
@pytest.mark.parametrize("name", NAMES)
def test_every_bundled_model_in_fp16(name: str, keep: bool, outer: int, tmp_path: Path) -> None:
    report = to_onnx(name, tmp_path / "half.onnx", precision="fp16", keep_fp32_io=keep)
    assert len(report.checks) == 4
    assert report.psnr_db >= 45
    graph = onnx.load(report.path).graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {outer}
    again, original = (tilefuse.load(source, backend="torch_eager") for source in (report.path, name))
    assert again.model.graph is not None
    assert original.model.graph is not None
    assert again.model.value_range == original.model.value_range
    if again.model.footprint is None:
        if "latent" in report.inputs:
            assert np.abs(again.generate(2, seed=3).astype(int) - original.generate(2, seed=3)).max() <= 2
        else:
            image = torch.rand(2, *(size or 0 for size in again.model.graph.inputs[0].shape[1:]))
            (actual,), (expected,) = (engine.model.graph.evaluate(image) for engine in (again, original))
            assert torch.equal(actual.argmax(1), expected.argmax(1))
            assert (actual - expected).abs().max() <= 5e-3 * expected.abs().max()
        return
    assert again.footprint.alignment == original.footprint.alignment
    assert again.footprint.halo == original.footprint.halo
    assert len(again.footprint.global_ops) == len(original.footprint.global_ops)
    _draws_the_same_picture(report.path, again, original)


def _draws_the_same_picture(path: Path, again: tilefuse.Engine, original: tilefuse.Engine) -> None:
    """Compare the picture with the fp32 model's, and tiles of it with the whole, on an image wider than the halo."""
    edge = again.footprint.alignment * -(-max(9, again.footprint.minimum_px) // again.footprint.alignment)
    image = torch.rand(1, 3, edge, 2 * again.footprint.halo + 5 * edge)
    whole = again(image)
    assert psnr_db(whole, original(image)) >= 45
    if again.footprint.global_ops:
        return
    tiled = tilefuse.load(path, backend="torch_eager", tile=2 * edge, schedule="windows")
    assert tiled.plan(*image.shape[2:]).windows > 1
    assert (tiled(image) - whole).abs().max() <= 1e-5 * max(1.0, whole.abs().max().item())


class Summing(nn.Module):
    """Sums over the channels one by one, which the engine has no op for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.leave(torch.cumsum(self.enter(x), 1))
        return y


@EDGES
def test_an_uncaptured_network_in_fp16_loads_back(keep: bool, outer: int, tmp_path: Path) -> None:
    module = Summing().eval()
    path = to_onnx(module, tmp_path / "half.onnx", precision="fp16", keep_fp32_io=keep).path
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == outer
    image = np.random.default_rng(0).random((20, 24, 3), np.float32)
    expected = tilefuse.load(module, backend="torch_eager")(image)
    for backend in ("onnxruntime", "openvino"):
        again = tilefuse.load(path, backend=backend)
        assert "CumSum" in (again.model.uncaptured or "")
        assert np.abs(again(image) - expected).max() < 2e-3
