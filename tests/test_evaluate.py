"""`train --evaluate`: each kind of model beside what needs no network, and what can't be measured is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from tilefuse.cli import cli
from tilefuse.errors import ModelError
from tilefuse.export.checkpoints import load_bundled
from tilefuse.export.generators.stylenet import TransformerNet
from tilefuse.export.recipes import measuring, restoration_quality
from tilefuse.export.recipes.corruption import square_holes
from tilefuse.export.recipes.evaluation import evaluate
from tilefuse.export.recipes.measuring import MEAN, Measurement, measure

pytestmark = pytest.mark.thorough


def values(measured: Measurement, subject: str, method: str) -> dict[str, float]:
    (found,) = [row.values for row in measured.rows if (row.subject, row.method) == (subject, method)]
    return dict(found)


@pytest.fixture
def one_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every measurement take one photograph."""
    one = ("chelsea.png",)
    for name in ("measure_denoising", "measure_inpainting", "measure_compression"):
        whole = getattr(measuring, name)
        monkeypatch.setattr(measuring, name, lambda module, whole=whole: whole(module, one))
    monkeypatch.setattr(measuring, "evaluate", lambda module, scale: evaluate(module, scale, one))


@pytest.mark.usefixtures("one_photograph")
@pytest.mark.parametrize(
    ("name", "baselines"),
    [
        ("espcn-x2", ["bicubic"]),
        ("restore-denoise", ["input", "median 3x3", "median 5x5"]),
        ("restore-inpaint", ["mean fill", "interpolation"]),
    ],
)
def test_models_of_pictures_stand_beside_what_needs_no_network(name: str, baselines: list[str]) -> None:
    measured = measure(name)
    methods = list(dict.fromkeys(row.method for row in measured.rows))
    assert methods == ["model", *baselines]
    for subject in ("chelsea", MEAN):
        for baseline in baselines:
            ours, theirs = values(measured, subject, "model"), values(measured, subject, baseline)
            assert ours.keys() == theirs.keys() == {"psnr_db", "ssim"}
            # Interpolation is hard to beat in dB: it is shown, and the bar is against mean fill.
            assert baseline == "interpolation" or ours["psnr_db"] > theirs["psnr_db"]


def test_digits_stand_beside_real_ones_and_noise() -> None:
    measured = measure("cgan-digits")
    ours, real, noise = (row.values for row in measured.rows)
    assert [row.method for row in measured.rows] == ["model", "real", "noise"]
    assert ours["accuracy"] >= 0.9
    assert real["frechet"] < ours["frechet"] < noise["frechet"]
    assert noise["entropy"] < ours["entropy"] <= np.log(10) + 1e-9
    assert noise["confidence"] < ours["confidence"] <= real["confidence"] + 0.05


def test_a_checkpoint_is_measured_as_its_bundled_twin(tmp_path: Path) -> None:
    module, _ = load_bundled("cnn-digits")
    save_file(module.state_dict(), tmp_path / "twin.safetensors", metadata={"hyper_parameters": '{"size": 28}'})
    twin = measure(tmp_path / "twin.safetensors")
    assert twin.rows == measure("cnn-digits").rows
    assert twin.rows[0].values["accuracy"] >= 0.97


def test_what_nothing_tells_the_worth_of_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did you mean espcn-x2"):
        measure("espcn-x22")
    with pytest.raises(ModelError, match="no such file"):
        measure(tmp_path / "none.safetensors")
    torch.manual_seed(0)
    network = TransformerNet(widths=(2, 2, 2), blocks=1)
    save_file(network.state_dict(), tmp_path / "style.safetensors")
    with pytest.raises(ModelError, match="nothing held out"):
        measure(tmp_path / "style.safetensors")


def test_the_command_line_prints_a_table_and_json() -> None:
    table = CliRunner().invoke(cli, ["train", "--evaluate", "cnn-digits"], catch_exceptions=False)
    assert "accuracy" in table.output
    assert "held-out digits" in table.output
    lines = CliRunner().invoke(cli, ["train", "--evaluate", "cnn-digits", "--json"], catch_exceptions=False)
    said = json.loads(lines.output)
    assert said["model"] == "cnn-digits"
    assert said["rows"][0]["accuracy"] >= 0.97


def test_a_network_that_does_nothing_scores_what_it_was_given() -> None:
    scores = restoration_quality.means(restoration_quality.measure_denoising(nn.Identity(), ("chelsea.png",)))
    assert scores["model"] == scores["input"]


def test_interpolation_of_a_gradient_is_nearly_the_gradient() -> None:
    ramp = torch.linspace(0.1, 0.9, 96).expand(3, 80, 96)
    holes = torch.from_numpy(square_holes(80, 96, np.random.default_rng(0)))[None]
    filled = restoration_quality.interpolated(ramp, 1.0 - holes.float())
    assert torch.equal(filled[:, ~holes[0]], ramp[:, ~holes[0]])
    assert (filled - ramp).abs().max() < 0.15
