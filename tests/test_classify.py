"""Classifying, reconstructing and interpolating: any picture in, and networks that can't are named."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import tilefuse
from tilefuse.cli import cli
from tilefuse.errors import ModelError, TilefuseError, UsageError
from tilefuse.export.recipes.digits import load_digits
from tilefuse.fitting import fit
from tilefuse.images import Picture, picture_from_array

COUNT = 40


@cache
def engine(name: str) -> tilefuse.Engine:
    return tilefuse.load(name, backend="torch_eager")


def held_out(scale: int = 3) -> list[Picture]:
    """Give held-out digits, enlarged, as gray pictures."""
    images = load_digits().held_out.images[:COUNT, 0].numpy()
    return [picture_from_array(np.rint(np.kron(i, np.ones((scale, scale))) * 255).astype(np.uint8)) for i in images]


def test_held_out_digits_are_told() -> None:
    found = engine("cnn-digits").classify(held_out())
    labels = load_digits().held_out.labels[:COUNT].tolist()
    assert sum(c.label == label for c, label in zip(found, labels, strict=True)) >= 0.95 * COUNT
    for c in found:
        assert sum(c.confidences) == pytest.approx(1.0)
        assert c.confidence == max(c.confidences)


def test_the_classes_are_those_of_the_module() -> None:
    module = engine("cnn-digits").model.module
    assert module is not None
    images = torch.cat([fit(picture, (1, 28, 28)) for picture in held_out()])
    with torch.no_grad():
        expected = module(images).softmax(1)
    found = torch.tensor([c.confidences for c in engine("cnn-digits").classify(held_out())])
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["rgb", "rgba", "uint16", "float32"])
def test_any_kind_of_picture_reads_alike(kind: str) -> None:
    gray = held_out(2)[0].pixels
    pictures = {
        "rgb": Picture(gray.repeat(3, axis=2)),
        "rgba": Picture(np.full((*gray.shape[:2], 3), 255, np.uint8), gray[..., 0]),
        "uint16": Picture(gray.astype(np.uint16) * 257),
        "float32": Picture(gray.astype(np.float32) / 255),
    }
    expected = fit(Picture(gray), (1, 28, 28))
    assert (fit(pictures[kind], (1, 28, 28)) - expected).abs().max() < 1e-5


def test_pictures_of_the_right_size_are_not_changed() -> None:
    images = load_digits().held_out.images[:1]
    assert torch.equal(fit(picture_from_array(images[0, 0].numpy()), (1, 28, 28)), images)


def test_a_digit_is_reconstructed_as_the_module_does() -> None:
    module = engine("vae-digits").model.module
    assert module is not None
    drawn = engine("vae-digits").reconstruct(held_out()[:5])
    assert (drawn.shape, drawn.dtype) == ((5, 28, 28, 1), np.uint8)
    images = torch.cat([fit(picture, (1, 28, 28)) for picture in held_out()[:5]])
    with torch.no_grad():
        expected = module.reconstruct(images)[:, 0].mul(255).round().numpy()
    assert np.abs(drawn[..., 0] - expected).max() <= 1
    assert np.abs(drawn[..., 0] / 255 - images[:, 0].numpy()).mean() < 0.1


def test_models_that_cannot_are_named() -> None:
    for act, words in (
        (lambda: engine("cnn-digits").reconstruct(held_out()[:1]), "cnn-digits has no encoder"),
        (lambda: engine("gan-digits").reconstruct(held_out()[:1]), "gan-digits has no encoder"),
        (lambda: engine("gan-digits").classify(held_out()[:1]), "gan-digits is no classifier"),
        (lambda: engine("espcn-x2").classify(held_out()[:1]), "espcn-x2 is no classifier"),
        (lambda: engine("cnn-digits").interpolate(0, 1, 3), "takes no latent"),
    ):
        with pytest.raises(ModelError, match=words):
            act()
    for ask in (engine("cnn-digits").classify, engine("vae-digits").reconstruct):
        with pytest.raises(UsageError, match="no pictures"):
            ask([])


def invoke(*arguments: object) -> tuple[int, str]:
    """Run a command in this process; a named error gives its exit code and message."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(result.exception, TilefuseError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None:
        raise result.exception
    return 0, result.output


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    Image.fromarray(held_out()[0].pixels[..., 0]).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


def test_the_command_line_classifies(digit: Path) -> None:
    label = int(load_digits().held_out.labels[0])
    code, text = invoke("classify", digit, digit, "--backend", "torch_eager")
    assert code == 0
    assert [line.startswith(f"{digit}: {label} (") for line in text.splitlines()] == [True, True]
    code, text = invoke("classify", digit, "--json", "--backend", "torch_eager")
    said = json.loads(text)
    assert (code, said["label"], len(said["confidences"])) == (0, label, 10)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("classify", "none.png"), 3, "none.png"),
        (("classify", "{digit}", "-m", "vae-digits"), 4, "no classifier"),
        (("reconstruct", "{digit}", "-o", "{out}", "-m", "gan-digits"), 4, "no encoder"),
        (("reconstruct", "none.png", "-o", "{out}"), 3, "none.png"),
        (("reconstruct", "{digit}", "-o", "out.xyz"), 2, ".xyz"),
        (("generate", "-m", "vae-digits", "--interpolate", "3-4", "-o", "{out}"), 2, "A:B"),
        (("compress", "{digit}", "-o", "{out}"), 2, ".tfz"),
        (("decompress", "{digit}", "-o", "{out}"), 3, "no .tfz file"),
        (("train", "--evaluate", "no-such-model"), 4, "no bundled model"),
        (("train",), 2, "name a recipe"),
        (("train", "espcn-x2", "--evaluate", "all"), 2, "trains nothing"),
    ],
)
def test_commands_that_cannot_be(
    digit: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    filled = [argument.format(digit=digit, out=tmp_path / "out.png") for argument in arguments]
    found, text = invoke(*filled)
    assert found == code
    assert words in text
    assert [path.name for path in tmp_path.iterdir()] == ["digit.png"]


def test_the_command_line_reconstructs_and_leads_from_seed_to_seed(digit: Path, tmp_path: Path) -> None:
    assert invoke("reconstruct", digit, "-o", tmp_path / "r.png", "--backend", "torch_eager")[0] == 0
    assert Image.open(tmp_path / "r.png").size == (28, 28)
    strip = ("generate", "-m", "vae-digits", "--interpolate", "3:4", "-n", 6, "-o", tmp_path / "s.png")
    assert invoke(*strip, "--backend", "torch_eager")[0] == 0
    assert Image.open(tmp_path / "s.png").size == (6 * 30 + 2, 32)
