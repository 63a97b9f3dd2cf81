"""What `load` takes as a network: one image in, one image out, and a named error for what is more or frozen."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import tilefuse
from tilefuse.errors import ModelError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.side = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 1, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> object:
        return self.conv(x)


class Pair(Net):
    def forward(self, x: Tensor) -> object:
        return self.conv(x), self.side(x)


class Named(Net):
    def forward(self, x: Tensor) -> object:
        return {"image": self.conv(x), "features": [self.side(x)]}


class Uncaptured(Net):
    def forward(self, x: Tensor) -> object:
        return self.conv(x).cumsum(2), self.side(x)


class Latent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.draw = nn.Linear(5, 12)

    def forward(self, z: Tensor) -> object:
        return self.draw(z).reshape(-1, 3, 2, 2), z


class Single(Net):
    def forward(self, x: Tensor) -> object:
        return {"image": self.conv(x)}


class SingleUncaptured(Net):
    def forward(self, x: Tensor) -> object:
        return [self.conv(x).cumsum(2)]


class BesideNothing(Net):
    def forward(self, x: Tensor) -> object:
        return self.conv(x), None


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (Pair(), (r"Pair gives 2 outputs", r"\[0\] of 1x3x16x24", r"\[1\] of 1x1x8x12", "forward")),
        (Named(), (r"\['image'\] of 1x3x16x24", r"\['features'\]\[0\] of 1x1x8x12")),
        (Uncaptured(), (r"Uncaptured gives 2 outputs", r"\[1\] of 1x1x8x12")),
        (Latent(), (r"Latent gives 2 outputs", r"\[0\] of 2x3x2x2")),
    ],
)
def test_a_module_of_several_outputs_is_refused_by_their_names(module: nn.Module, named: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        tilefuse.load(module)
    for part in named:
        caught.match(part)


@pytest.mark.parametrize("kind", [Single, SingleUncaptured, BesideNothing])
def test_one_tensor_in_a_container_is_the_output(kind: type[Net]) -> None:
    image = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(0))
    module = kind()
    with torch.no_grad():
        (expected,) = [leaf for leaf in torch.utils._pytree.tree_leaves(module(image[None])) if leaf is not None]
    error = (tilefuse.load(module, backend="torch_eager")(image) - expected[0]).abs()
    print(f"max {error.max():.2e} rms {error.square().mean().sqrt():.2e}")
    assert error.max() <= 1e-5


def onnx_file(path: Path, inputs: list[str], outputs: list[str], ops: list[tuple[str, list[str], str]]) -> Path:
    """Write a network of ops (type, inputs, output) on images of 3 channels."""
    nodes = [helper.make_node(kind, taken, [given]) for kind, taken, given in ops]
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", "w"]) for name in names]
        for names in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "net", *values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("op", ["Relu", "Sin"])
def test_an_onnx_file_of_several_outputs_is_refused_by_their_names(tmp_path: Path, op: str) -> None:
    path = onnx_file(tmp_path / "two.onnx", ["x"], ["y", "z"], [(op, ["x"], "y"), ("Neg", ["x"], "z")])
    with pytest.raises(ModelError, match=r"2 outputs: y, z.*onnx\.utils\.extract_model\(.*\['x'\], \['y'\]\)"):
        tilefuse.load(path)


def test_a_network_of_two_images_is_refused_by_their_names(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "two.onnx", ["x", "q"], ["y"], [("Add", ["x", "q"], "y")])
    with pytest.raises(ModelError, match=r"takes 2 inputs \(x, q\)"):
        tilefuse.load(path)


def test_an_exported_program_is_told_what_is_taken_instead() -> None:
    program = torch.export.export(Net(), (torch.rand(1, 3, 16, 16),))
    for source, name in (
        (program, "ExportedProgram"),
        (program.module(), "exported program"),
        (nn.Sequential(program.module(), nn.ReLU()), "exported program"),
    ):
        with pytest.raises(ModelError, match=rf"{name}.*torch\.nn\.Module.*torch\.onnx\.export"):
            tilefuse.load(source)  # type: ignore[arg-type]
