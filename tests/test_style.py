"""Style transfer: its losses, pictures, network and recipe, the bundled styles, and `tilefuse stylise`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

import tilefuse
from tilefuse.cli import cli
from tilefuse.errors import CapacityError, ImageError, TilefuseError, UsageError
from tilefuse.export import stylisation
from tilefuse.export.architectures import build, infer
from tilefuse.export.checkpoints import bundled, load_bundled
from tilefuse.export.generators.stylenet import TransformerNet
from tilefuse.export.recipes.dataset import DataMix
from tilefuse.export.recipes.loop import Step
from tilefuse.export.recipes.photographs import held_out_photograph
from tilefuse.export.recipes.random_features import random_features
from tilefuse.export.recipes.starts import start_as_interpolation
from tilefuse.export.recipes.style_losses import (
    content_loss,
    gram,
    style_loss,
    textures_of,
    total_variation,
)
from tilefuse.export.recipes.style_pictures import STYLES, mosaic, waves
from tilefuse.export.recipes.style_recipes import STYLE_RECIPES
from tilefuse.export.recipes.stylisation import measure_style, style_picture
from tilefuse.export.stylisation import StyleLosses, stylise

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
BUNDLED = ("style-mosaic", "style-waves")
TINY = dataclasses.replace(
    STYLE_RECIPES["style-mosaic"],
    hyper_parameters={"widths": (8, 8, 8), "blocks": 1, "img_range": 20.0},
    pictures=DataMix(pictures=2, picture_size=48, photograph_share=0.0, photographs=()),
    steps=4,
    batch=1,
    patch=32,
    checkpoint_steps=2,
)


def face(edge: int) -> NDArray[np.uint8]:
    photograph = Image.fromarray(held_out_photograph("astronaut.png")[20:170, 150:300])
    return np.asarray(photograph.resize((edge, edge)))


def as_tensor(picture: NDArray[np.uint8]) -> torch.Tensor:
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255.0


def test_gram_and_total_variation_of_hand_written_values() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])
    assert gram(features)[0].tolist() == [[2.5, 6.5], [6.5, 17.0]]
    image = torch.tensor([[[[0.0, 1.0, 1.0], [2.0, 1.0, 4.0]]]])
    assert total_variation(image).item() == pytest.approx((2 + 0 + 3) / 3 + (1 + 0 + 1 + 3) / 4)


def test_the_style_loss_tells_the_style_from_others_wherever_it_is_cut() -> None:
    styles = {name: as_tensor(draw(0, 160)) for name, draw in STYLES.items()}
    for name, style in styles.items():
        textures = textures_of(style[..., :128, :128])
        other = styles["waves" if name == "mosaic" else "mosaic"]
        same, moved = style_loss(style[..., :128, :128], textures), style_loss(style[..., 32:, 32:], textures)
        foreign, flat = style_loss(other, textures), style_loss(torch.full_like(other, 0.4), textures)
        assert same.item() < 1e-9
        assert 10 * moved.item() < min(foreign.item(), flat.item())


def test_the_content_loss_sees_light_and_no_colour() -> None:
    content = as_tensor(face(64))
    luma = torch.einsum("nchw,c->nhw", content, torch.tensor([0.299, 0.587, 0.114]))[:, None].expand(1, 3, 64, 64)
    assert content_loss(content, content).item() == 0
    assert content_loss(luma, content).item() < 1e-6
    assert content_loss(content.flip(3), content).item() > 0.2


@pytest.mark.parametrize("draw", [mosaic, waves])
def test_style_pictures_repeat_for_a_seed(draw) -> None:  # type: ignore[no-untyped-def]
    first = draw(3, 96)
    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, draw(3, 96))
    assert not np.array_equal(first, draw(4, 96))
    # Dark lines between bright areas, in many colours.
    assert first.min() < 60
    assert len(np.unique(first.reshape(-1, 3) // 48, axis=0)) > 12


def test_the_network_starts_with_its_content() -> None:
    torch.manual_seed(0)
    image = as_tensor(face(64))
    for img_range in (1.0, 255.0):
        network = TransformerNet((8, 12, 16), 2, img_range)
        start_as_interpolation(network)
        with torch.no_grad():
            drawn = network(image)
        assert drawn.shape == image.shape
        assert np.corrcoef(drawn.flatten(), image.flatten())[0, 1] > 0.65


@pytest.mark.parametrize(("widths", "blocks", "img_range"), [((4, 5, 6), 1, 1.0), ((3, 3, 3), 4, 255.0)])
def test_the_architecture_is_inferred(widths: tuple[int, int, int], blocks: int, img_range: float) -> None:
    network = TransformerNet(widths, blocks, img_range)
    metadata = {} if img_range == 255.0 else {"hyper_parameters": json.dumps({"img_range": img_range})}
    weights = network.state_dict()
    # Files of PyTorch 0.2 hold statistics that nothing reads.
    statistics = {"in1.running_mean": torch.zeros(widths[0]), "in1.running_var": torch.ones(widths[0])}
    descriptor = infer({**weights, **statistics}, metadata)
    assert descriptor.architecture == "TransformerNet"
    assert descriptor.hyperparameters == {"widths": widths, "blocks": blocks, "img_range": img_range}
    assert (descriptor.scale, descriptor.in_channels, descriptor.out_channels) == (1, 3, 3)
    image = torch.rand(1, 3, 16, 20)
    with torch.no_grad():
        assert torch.equal(build(descriptor, {**weights, **statistics})(image), network(image))


@pytest.mark.thorough
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Scores of photographs are another test's; here they would take most of the time.
    monkeypatch.setattr("tilefuse.export.recipes.stylisation.measure_style", lambda *_: {"style": 1.0})

    def kill(step: Step) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    whole, halved = tmp_path / "whole.safetensors", tmp_path / "halved.safetensors"
    TINY.run(whole, device=CPU)
    with pytest.raises(KeyboardInterrupt):
        TINY.run(halved, device=CPU, on_step=kill)
    steps: list[int] = []
    report = TINY.run(halved, device=CPU, resume=True, on_step=lambda step: steps.append(step.step))
    assert steps == [3, 4]
    assert whole.read_bytes() == halved.read_bytes()
    assert set(report.losses) == {"style", "content"}
    with safe_open(whole, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["style"].startswith("mosaic")
    assert metadata["architecture"] == "TransformerNet"


@pytest.mark.thorough
def test_training_lowers_the_style_loss() -> None:
    trainer = TINY.trainer(0, CPU)
    losses = [trainer.advance(step, 20)["style"] for step in range(20)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_styles_look_like_their_style_and_their_content(name: str) -> None:
    recipe, path = STYLE_RECIPES[name], bundled()[name]
    assert path.stat().st_size <= 800_000
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["recipe"], metadata["steps"], metadata["seed"]) == (name, str(recipe.steps), "0")
    module, _ = load_bundled(name)
    scores = measure_style(module, recipe.style, ("astronaut.png",))
    print(name, scores)
    assert scores["style"] < 0.35 * scores["photograph_style"]
    # A picture of the style alone, that shows nothing of the content.
    nothing = content_loss(style_picture(recipe.style), as_tensor(held_out_photograph("astronaut.png")[:256, :256]))
    assert scores["content"] < 0.7 * nothing.item()


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_styles_run_whole_through_the_engine(name: str, assert_close) -> None:  # type: ignore[no-untyped-def]
    image = as_tensor(face(64))[..., :60]
    module, _ = load_bundled(name)
    engine = tilefuse.load(name, backend="torch_eager", precision="fp32")
    with torch.no_grad():
        assert_close(torch.as_tensor(engine(image)), module(image))
    assert "whole image" in str(engine.plan(64, 60))
    with pytest.raises(CapacityError, match=r"(and \d more see|instance_norm sees) the whole image"):
        tilefuse.load(name, backend="torch_eager", tile=24)(image)


def test_features_first_used_without_gradients_have_them_later() -> None:
    random_features.cache_clear()
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    with torch.inference_mode():
        content_loss(image, image)
    content_loss(image, torch.zeros(1, 3, 16, 16)).backward()
    assert image.grad is not None
    assert image.grad.abs().sum().item() > 0


@pytest.mark.thorough
def test_stylise_lowers_the_style_loss_and_repeats() -> None:
    seen: list[StyleLosses] = []
    content, style = face(48), waves(0, 64)
    first = stylise(content, style, steps=6, on_step=seen.append)
    assert first.picture.shape == (48, 48, 3)
    assert first.after.style < 0.5 * first.before.style
    assert first.before.content == 0
    assert 0 < first.after.content < 1
    assert [done.step for done in seen] == list(range(1, 7))
    assert np.array_equal(first.picture, stylise(content, style, steps=6).picture)
    assert not np.array_equal(first.picture, stylise(content, style, steps=6, seed=1).picture)
    bold = stylise(content, style, steps=6, style_weight=500.0)
    assert bold.after.content > first.after.content


def test_stylise_works_from_coarse_to_fine_at_odd_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    measured = stylisation.content_loss

    def watched(images: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(images.shape[2:]))
        return measured(images, contents)

    monkeypatch.setattr(stylisation, "content_loss", watched)
    seen: list[int] = []
    result = stylise(face(107)[:101], waves(0, 97), steps=5, on_step=lambda done: seen.append(done.step))
    assert seen == [1, 2, 3, 4, 5]
    # One step in three at half the size; a quarter would be too small. The last two are the losses told.
    assert sizes == [(50, 53), *[(101, 107)] * 6]
    assert result.picture.shape == (101, 107, 3)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (np.zeros((15, 40, 3), np.uint8), {}, "40x15 pixels"),
        (np.zeros((40, 40), np.uint8), {}, "expected uint8"),
        (np.zeros((40, 40, 3), np.uint8), {"steps": 0}, "at least 1"),
        (np.zeros((40, 40, 3), np.uint8), {"style_weight": -1.0}, "style weight"),
        (np.zeros((40, 40, 3), np.uint8), {"style_weight": float("nan")}, "style weight"),
    ],
)
def test_stylise_refuses_what_it_cannot_do(content: NDArray[np.uint8], options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stylise(content, waves(0, 48), **options)  # type: ignore[arg-type]


def run_stylise(*arguments: object) -> tuple[str, TilefuseError | None]:
    result = CliRunner().invoke(cli, ["stylise", *map(str, arguments)])
    if isinstance(result.exception, TilefuseError):
        return result.output, result.exception
    assert result.exception is None, result.output
    return result.output, None


def test_the_command_writes_a_picture_and_tells_the_losses(tmp_path: Path) -> None:
    content, style, output = tmp_path / "c.png", tmp_path / "s.png", tmp_path / "o.png"
    Image.fromarray(face(48)).convert("L").save(content)
    Image.fromarray(mosaic(0, 64)).save(style)
    told, error = run_stylise(content, style, "-o", output, "--steps", 3)
    assert error is None
    assert "3 steps; style 0." in told
    with Image.open(output) as image:
        assert (image.size, image.mode) == ((48, 48), "RGB")
    before = output.read_bytes()
    assert isinstance(run_stylise(content, style, "-o", output, "--steps", 3)[1], UsageError)
    assert output.read_bytes() == before
    told, _ = run_stylise(content, style, "-o", output, "--steps", 2, "--overwrite", "--json")
    losses = json.loads(told)
    assert losses["after"]["style"] < losses["before"]["style"]


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    good, empty, output = tmp_path / "good.png", tmp_path / "empty.png", tmp_path / "o.png"
    Image.fromarray(face(32)).save(good)
    empty.write_bytes(b"")
    for content, style in ((tmp_path / "none.png", good), (good, tmp_path / "none.png"), (empty, good), (good, empty)):
        _, error = run_stylise(content, style, "-o", output)
        assert isinstance(error, ImageError)
        assert "none.png" in str(error) or "empty.png" in str(error)
    assert isinstance(run_stylise(good, good, "-o", tmp_path / "o.xyz")[1], UsageError)
    assert not output.exists()
