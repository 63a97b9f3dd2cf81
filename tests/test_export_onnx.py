"""Exports to ONNX: opened by ONNX Runtime at other sizes, loaded back, and refused where they would be wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tilefuse
from tests.exporting import metadata, onnx, ops, session, tiny, tracing_once
from tilefuse.errors import ExportError, UsageError
from tilefuse.export import to_onnx
from tilefuse.export.checkpoints import bundled, load_bundled
from tilefuse.export.onnx import ExportReport
from tilefuse.export.onnx_inputs import Signature, Slot

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tracing_once")]

Compare = Callable[..., None]
__all__ = ["tracing_once"]
# The network of style-mosaic with other weights: traced again, it takes seconds.
SAME_NETWORK = "style-waves"
NAMES = [pytest.param(name, marks=pytest.mark.slow if name == SAME_NETWORK else ()) for name in bundled()]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ExportReport]:
    """Return a function that exports a bundled model once."""
    folder, made = tmp_path_factory.mktemp("exported"), dict[str, ExportReport]()

    def export(name: str) -> ExportReport:
        if name not in made:
            made[name] = to_onnx(name, folder / f"{name}.onnx")
        return made[name]

    return export


@pytest.mark.parametrize("name", NAMES)
def test_every_bundled_model_runs_at_sizes_never_compared(
    name: str, exported: Callable[[str], ExportReport], assert_close: Compare
) -> None:
    report = exported(name)
    module, descriptor = load_bundled(name)
    multiple = int(report.metadata.get("tilefuse.alignment_px", 1))
    torch.manual_seed(9)
    if descriptor.inputs:
        inputs = [torch.rand(2, *shape) for shape in descriptor.inputs.values()]
        assert list(report.inputs) == list(descriptor.inputs)
    else:
        inputs = [torch.rand(2, descriptor.in_channels, 5 * multiple, 7 * multiple)]
        edges = ("height", "width") if multiple == 1 else (f"{multiple}*height", f"{multiple}*width")
        assert report.inputs["image"] == ("batch", descriptor.in_channels, *edges)
        out_edges = [edge.replace(f"{multiple}*", "") for edge in edges]
        factor = descriptor.scale * multiple
        assert report.outputs["image_out"][2:] == tuple(f"{factor}*{e}" if factor > 1 else e for e in out_edges)
    feed = {name: x.numpy() for name, x in zip(report.inputs, inputs, strict=True)}
    with torch.no_grad():
        assert_close(torch.from_numpy(session(report.path).run(None, feed)[0]), module(*inputs), max_abs=1e-4)
    assert "BatchNormalization" not in ops(report.path)
    assert next(iter(report.outputs.values()))[0] == "batch"


@pytest.mark.parametrize("name", NAMES)
def test_every_bundled_model_loads_back_and_gives_the_same_picture(
    name: str, exported: Callable[[str], ExportReport], assert_close: Compare
) -> None:
    report = exported(name)
    again = tilefuse.load(report.path, backend="torch_eager")
    if "latent" in report.inputs:
        original = tilefuse.load(name, backend="torch_eager")
        assert np.abs(original.generate(2, seed=3).astype(int) - again.generate(2, seed=3)).max() <= 1
        assert again.model.value_range == original.model.value_range
        return
    module, descriptor = load_bundled(name)
    if descriptor.inputs:
        image = torch.rand(2, *descriptor.inputs["image"])
        assert again.model.graph is not None
        with torch.no_grad():
            assert_close(again.model.graph.evaluate(image)[0], module(image), max_abs=1e-4)
        return
    assert str(again.footprint.halo) == report.metadata["tilefuse.halo_px"]
    assert str(again.footprint.alignment) == report.metadata["tilefuse.alignment_px"]
    edge = max(8, again.footprint.alignment)
    image = torch.rand(1, 3, 2 * edge, 3 * edge)
    # A network that fills holes is given none.
    channels = torch.cat([image, torch.zeros(1, descriptor.in_channels - 3, 2 * edge, 3 * edge)], 1)
    with torch.no_grad():
        assert_close(again(image), module(channels), max_abs=1e-4)


def test_tiles_of_an_export_equal_the_whole_image(exported: Callable[[str], ExportReport]) -> None:
    image = np.random.default_rng(0).random((33, 29, 3), np.float32)
    path = exported("espcn-x2").path
    whole = tilefuse.load(path, backend="torch_eager", tile=0)(image)
    tiled = tilefuse.load(path, backend="torch_eager", tile=12)
    assert tiled.plan(33, 29).windows > 1
    assert np.abs(tiled(image) - whole).max() <= 1e-5


def test_a_pixel_shuffle_is_depth_to_space(exported: Callable[[str], ExportReport]) -> None:
    nodes = onnx.load(exported("espcn-x2").path).graph.node
    modes = [onnx.helper.get_node_attr_value(node, "mode") for node in nodes if node.op_type == "DepthToSpace"]
    assert modes == [b"CRD"]
    assert not any(node.op_type == "Transpose" for node in nodes)


def test_the_file_describes_itself(exported: Callable[[str], ExportReport]) -> None:
    found = metadata(exported("espcn-x2").path)
    assert found["tilefuse.scale"] == "2"
    assert (found["tilefuse.halo_px"], found["tilefuse.alignment_px"]) == ("4", "1")
    assert found["tilefuse.value_range"] == "0,1"
    assert found["Image.NominalPixelRange"] == "Normalized_0_1"
    assert found["Image.BitmapPixelFormat"] == "Rgb8"
    assert found["tilefuse.layout"] == "NCHW"
    assert found["model_license"] == "Apache-2.0"
    assert found["tilefuse.source_sha256"] == hashlib.sha256(bundled()["espcn-x2"].read_bytes()).hexdigest()
    model = onnx.load(exported("espcn-x2").path, load_external_data=False)
    assert model.graph.input[0].type.denotation == "IMAGE"
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert metadata(exported("cgan-digits").path)["Image.NominalPixelRange"] == "Normalized_1_1"


def test_nothing_of_the_machine_that_wrote_it_is_in_the_file(exported: Callable[[str], ExportReport]) -> None:
    data = exported("espcn-x2").path.read_bytes()
    for word in (os.fsencode(Path(torch.__file__).parent), os.fsencode(Path(tilefuse.__file__).parent), b".py"):
        assert word not in data


def test_the_report_names_every_comparison(exported: Callable[[str], ExportReport]) -> None:
    report = exported("espcn-x2")
    names = [check.evaluator for check in report.checks]
    assert names == ["ONNX Runtime"] * 3 + ["the reference evaluator"]
    assert len({check.shapes for check in report.checks[:3]}) == 3
    traced = tuple(Signature((Slot("image", (3, None, None)),)).traced()[0].shape)
    assert (traced,) not in {check.shapes for check in report.checks}
    assert 0 < report.max_abs <= 1e-4
    assert report.psnr_db > 80
    with pytest.raises(AttributeError):
        report.opset = 3  # type: ignore[misc]


class Strided(nn.Module):
    """Halves and doubles again: images of even edges only."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(torch.relu(self.norm(self.down(x))))


def test_a_strided_network_is_open_in_multiples(tmp_path: Path) -> None:
    report = to_onnx(Strided().eval(), tmp_path / "s.onnx")
    assert report.inputs == {"image": ("batch", 3, "2*height", "2*width")}
    assert report.outputs == {"image_out": ("batch", 3, "2*height", "2*width")}
    assert "BatchNormalization" not in ops(report.path)
    assert all(size % 2 == 0 for check in report.checks for size in check.shapes[0][2:])


class Resizing(nn.Module):
    """Resizes to the size of its input, which ONNX's Resize then takes at run time."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.leave = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.interpolate(self.down(x), size=x.shape[2:], mode="bilinear")
        return self.leave(y)


@pytest.mark.thorough
def test_a_network_that_torch_writes_untileably_is_written_from_its_graph(tmp_path: Path) -> None:
    module = Resizing().eval()
    report = to_onnx(module, tmp_path / "u.onnx")
    assert report.inputs["image"] == ("batch", 3, "2*height", "2*width")
    assert report.outputs["image_out"] == ("batch", 3, "2*height", "2*width")
    assert "written from the graph" in report.notes[0]
    assert tilefuse.load(report.path).footprint.halo == tilefuse.load(module).footprint.halo


def test_an_onnx_file_is_written_again(exported: Callable[[str], ExportReport], tmp_path: Path) -> None:
    report = to_onnx(exported("cgan-digits").path, tmp_path / "again.onnx", precision="fp16", keep_fp32_io=True)
    assert report.inputs == exported("cgan-digits").inputs
    assert report.outputs == exported("cgan-digits").outputs
    assert tilefuse.load(report.path).model.value_range == (-1.0, 1.0)


@pytest.mark.thorough
def test_the_opset_is_the_one_asked_for(tmp_path: Path) -> None:
    report = to_onnx(tiny(), tmp_path / "o.onnx", opset=18)
    assert onnx.load(report.path).opset_import[0].version == report.opset == 18


class Branching(nn.Module):
    """Decides by the data, which one file can't."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if y.mean() > 0 else -y


class SizeBranching(Branching):
    """Decides by the size."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.shape[2] > 40 else -self.conv(x)


class Unsupported(Branching):
    """Uses an op ONNX has not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.conv(x))


class OneSize(Branching):
    """Adds a picture of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Parameter(torch.rand(1, 3, 16, 24))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.picture


class Contained(Branching):
    """Gives an image in a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.conv(x),)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Branching, ("branches on data", "torch.where")),
        (SizeBranching, ("certain sizes only", "40", "don't branch")),
        (Unsupported, ("bessel_j0", "replace it")),
        (OneSize, ("3x16x24 only", "leave out weights")),
        (Contained, ("gives a tuple", "alone")),
    ],
)
def test_what_cannot_be_exported_is_named_and_leaves_nothing(
    module: type[nn.Module], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        to_onnx(module().eval(), tmp_path / "never.onnx")
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_tampered_weight_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilefuse.export import onnx as export

    honest = export.describe

    def tamper(model: onnx.ModelProto, found: dict[str, str]) -> None:
        honest(model, found)
        tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.flat[array.size // 2] += 0.05
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    monkeypatch.setattr(export, "describe", tamper)
    module = tiny()
    with pytest.raises(ExportError, match="differ by"):
        to_onnx(module, tmp_path / "t.onnx")
    assert list(tmp_path.iterdir()) == []
    assert to_onnx(module, tmp_path / "t.onnx", verify=False).checks == ()


def test_the_reference_evaluator_has_its_own_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilefuse.export import onnx_verify

    honest = onnx_verify._reference
    monkeypatch.setattr(onnx_verify, "_reference", lambda model: lambda feed: honest(model)(feed) + 0.01)
    with pytest.raises(ExportError, match="reference evaluator and torch differ"):
        to_onnx(tiny(), tmp_path / "t.onnx")


def test_a_file_that_stands_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "there.onnx"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="already exists"):
        to_onnx(tiny(), path)
    with pytest.raises(ExportError):
        to_onnx(Branching().eval(), path, overwrite=True)
    assert path.read_bytes() == b"mine"
    assert [p.name for p in tmp_path.iterdir()] == ["there.onnx"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"opset": 9}, "18 to 23"),
        ({"precision": "int4"}, "fp32, fp16, int8"),
        ({"keep_fp32_io": True}, "fp16"),
        ({"calibration": "."}, "int8"),
    ],
)
def test_options_are_checked_before_anything_runs(options: dict[str, object], word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=word):
        to_onnx("espcn-x2", tmp_path / "a.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"\.onnx"):
        to_onnx("espcn-x2", tmp_path / "a.bin")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tilefuse.export.onnx.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="pip install"):
        to_onnx("espcn-x2", tmp_path / "a.onnx")
