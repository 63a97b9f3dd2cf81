"""What is asked of a training run beside its recipe, and training data that can't be read: said before any work."""

from __future__ import annotations

from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tilefuse.cli import cli
from tilefuse.errors import DeviceError, ModelError, UsageError
from tilefuse.export import recipes
from tilefuse.export.recipes import catalogue, digits, photographs
from tilefuse.export.recipes.latent_recipes import LATENT_RECIPES
from tilefuse.export.recipes.losses import ADVERSARIAL
from tilefuse.export.recipes.options import training_device, with_loss


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "", "auto", "meta"])
def test_a_device_that_is_none(device: str) -> None:
    with pytest.raises(UsageError, match=r"cpu, cuda or cuda:N"):
        training_device(device)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert training_device("cuda") == torch.device("cuda")
    assert training_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(DeviceError, match=r"cuda:1 can't be used.*finds 1"):
        training_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="use cpu"):
        training_device("cuda")


@pytest.mark.thorough
@pytest.mark.parametrize("loss", sorted(ADVERSARIAL))
def test_the_loss_of_a_gan_is_a_choice(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = with_loss("gan-digits", loss)
    assert changed.loss == loss
    assert (changed.critic_steps, changed.penalty) == ((5, 10.0) if loss == "wasserstein" else (1, 2.0))
    quick = {**LATENT_RECIPES, "gan-digits": replace(LATENT_RECIPES["gan-digits"], batch=8, checkpoint_steps=4)}
    monkeypatch.setattr("tilefuse.export.recipes.options.LATENT_RECIPES", quick)
    monkeypatch.setattr(type(changed), "measure", lambda self, module: {"score": 1.0})
    first = recipes.train("gan-digits", tmp_path / "a.safetensors", steps=2, loss=loss)
    other = "hinge" if loss != "hinge" else "minimax"
    recipes.train("gan-digits", tmp_path / "b.safetensors", steps=2, loss=other)
    assert first.output.read_bytes() != (tmp_path / "b.safetensors").read_bytes()


def test_a_loss_that_is_none() -> None:
    with pytest.raises(UsageError, match="minimax, non_saturating, hinge, wasserstein"):
        with_loss("gan-digits", "lsgan")
    for name in ("vae-digits", "espcn-x2"):
        with pytest.raises(UsageError, match=r"no choice of adversarial loss.*gan-digits"):
            with_loss(name, "hinge")


@pytest.mark.parametrize("place", ["output", "json_log"])
def test_what_cannot_be_written_is_said_before_training(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "RUNS", {"gan-digits": lambda *_, **__: pytest.fail("it trained")})
    paths = {"output": tmp_path / "a.safetensors", place: tmp_path / "nowhere" / "a"}
    with pytest.raises(UsageError, match="nowhere does not exist"):
        recipes.train("gan-digits", **paths)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("resume", [False, True])
def test_weights_that_stand_are_replaced_only_when_asked(
    resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[Path] = []

    def begin(output: Path, **_: object) -> None:
        began.append(output)
        raise ModelError("it began")

    monkeypatch.setattr(catalogue, "RUNS", {"gan-digits": begin})
    output = tmp_path / "net.safetensors"
    output.write_bytes(b"mine")
    asked = ["train", "gan-digits", "-o", str(output), *(["--resume"] if resume else [])]
    refused = CliRunner().invoke(cli, asked)
    assert isinstance(refused.exception, UsageError)
    assert "already exists" in str(refused.exception)
    assert "--overwrite" in str(refused.exception)
    assert began == []
    allowed = CliRunner().invoke(cli, [*asked, "--overwrite"])
    assert isinstance(allowed.exception, ModelError)
    assert began == [output]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("net.safetensors", b"mine")]


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize("content", [b"", b"no gzip", b"\x1f\x8b\x08\x00truncated", None])
def test_digits_that_cannot_be_read(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec("sklearn", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(digits, "find_spec", lambda name: spec)
    path = tmp_path / "datasets" / "data" / "digits.csv.gz"
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"pip install|expected \(1797, 65\)"):
        digits._read()


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", None])
def test_photographs_that_cannot_be_read(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModuleSpec("skimage", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(photographs, "find_spec", lambda name: spec)
    (tmp_path / "data").mkdir()
    if content is not None:
        (tmp_path / "data" / "brick.png").write_bytes(content)
    with pytest.raises(ModelError, match=r"data/brick\.png.*pip install"):
        photographs.training_photograph("brick.png")
