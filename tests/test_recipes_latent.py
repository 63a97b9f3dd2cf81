"""Recipes of the latent generators: their losses and data, that runs repeat and resume, what the weights measure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.conftest import Compare
from tilefuse.errors import ModelError, UsageError
from tilefuse.export import recipes
from tilefuse.export.checkpoints import bundled, load_bundled, load_module
from tilefuse.export.generators.classifier import Classifier
from tilefuse.export.recipes import digits, photographs, textures
from tilefuse.export.recipes.adversarial import AdversarialRecipe
from tilefuse.export.recipes.classification import ClassificationRecipe, distorted
from tilefuse.export.recipes.dead_leaves import dead_leaves
from tilefuse.export.recipes.digits import load_digits
from tilefuse.export.recipes.latent import LatentRecipe, set_learning_rate
from tilefuse.export.recipes.latent_recipes import LATENT_RECIPES
from tilefuse.export.recipes.loop import Step, update_average
from tilefuse.export.recipes.losses import (
    ADVERSARIAL,
    gradient_penalty,
    kl_divergence,
    real_gradient_penalty,
    reconstruction,
)
from tilefuse.export.recipes.progressive import ProgressiveRecipe, faded, growth
from tilefuse.export.recipes.quality import digit_quality, frechet_distance, patch_distance
from tilefuse.export.recipes.sources import draw_images
from tilefuse.export.recipes.textures import TINTS, Textures, load_textures
from tilefuse.export.recipes.variational import VariationalRecipe

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
SMALL_DISCRIMINATOR = {"channels": 1, "size": 28, "features": 3, "stages": 2}

SMALL: dict[str, LatentRecipe] = {
    "gan": AdversarialRecipe(
        "gan", "GAN", "digits", (0.0, 1.0), {"latent": 4, "hidden": (5,), "channels": 1, "size": 28},
        discriminator={"hidden": (6,)}, loss="minimax",
    ),
    "wgan": AdversarialRecipe(
        "wgan", "GAN", "digits", (0.0, 1.0), {"latent": 4, "hidden": (5,), "channels": 1, "size": 28},
        discriminator={"hidden": (6,)}, loss="wasserstein", penalty=10.0, critic_steps=2,
    ),
    "dcgan": AdversarialRecipe(
        "dcgan", "ProjectedDCGAN", "digits", hyper_parameters={"latent": 4, "features": 4, "channels": 1, "size": 7},
        discriminator=SMALL_DISCRIMINATOR, loss="non_saturating", penalty=1.0, penalty_interval=3, half_precision=True,
    ),
    "cgan": AdversarialRecipe(
        "cgan", "CGAN", "digits",
        hyper_parameters={"latent": 4, "classes": 10, "embedding": 2, "features": 4, "channels": 1, "size": 7},
        discriminator={**SMALL_DISCRIMINATOR, "classes": 10}, loss="hinge",
    ),
    "vae": VariationalRecipe(
        "vae", "VAE", "digits", (0.0, 1.0), {"latent": 3, "features": 4, "channels": 1, "size": 7}
    ),
    "cnn": ClassificationRecipe(
        "cnn", "Classifier", "digits", (0.0, 1.0), {"channels": 1, "size": 28, "features": (2, 3), "hidden": (8, 6)}
    ),
}  # fmt: skip
SMALL = {name: replace(recipe, batch=6, steps=20, checkpoint_steps=8) for name, recipe in SMALL.items()}
GROWING = ProgressiveRecipe(
    "pggan", "PGGAN", "textures-32", hyper_parameters={"latent": 4, "widths": (4, 3, 3, 2), "channels": 3},
    steps=20, batch=4, checkpoint_steps=7, discriminator={"widths": (4, 3, 3, 2)}, penalty=1.0,
)  # fmt: skip
LONG = {"dcgan", "pggan"}


class Killed(Exception):
    """Ends a run in its middle."""


def kill_after(step: int) -> object:
    def on_step(record: Step) -> None:
        if record.step == step:
            raise Killed

    return on_step


@cache
def rendered(seed: tuple[int, ...], size: int) -> NDArray[np.uint8]:
    return dead_leaves(list(seed), size)


@pytest.fixture(autouse=True)
def leaves_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textures, "dead_leaves", lambda seed, size: rendered(tuple(seed), size))


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(r, id=r.name, marks=[pytest.mark.slow] if r.name in LONG else [])
        for r in (*SMALL.values(), GROWING)
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    recipe: LatentRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(recipe), "measure", lambda self, module: {"score": 1.0})
    whole, broken, log = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors", tmp_path / "log.jsonl"
    seen: list[Step] = []
    report = recipe.run(whole, device=CPU, seed=3, on_step=seen.append)
    assert [step.step for step in seen] == list(range(1, 21))
    assert [bool(step.validation) for step in seen] == [
        s % recipe.checkpoint_steps == 0 or s == 20 for s in range(1, 21)
    ]
    assert all(math.isfinite(value) for step in seen for value in step.losses.values())
    assert report.losses == seen[-1].losses
    with pytest.raises(Killed):
        recipe.run(broken, device=CPU, seed=3, on_step=kill_after(17), json_log=log)  # type: ignore[arg-type]
    assert not broken.exists()
    torch.rand(5)
    recipe.run(broken, device=CPU, seed=3, resume=True, json_log=log)
    assert broken.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.safetensors", "broken.safetensors", "log.jsonl"}
    saved = 17 // recipe.checkpoint_steps * recipe.checkpoint_steps
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, 18), *range(saved + 1, 21)]
    recipe.run(broken, device=CPU, seed=4)
    assert broken.read_bytes() != whole.read_bytes()


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"
    with pytest.raises(Killed):
        SMALL["gan"].run(output, device=CPU, on_step=kill_after(9))  # type: ignore[arg-type]
    for recipe, seed in ((SMALL["gan"], 1), (replace(SMALL["gan"], batch=7), 0), (SMALL["wgan"], 0)):
        with pytest.raises(ModelError, match="belongs to a run with another recipe, seed or number of steps"):
            recipe.run(output, device=CPU, seed=seed, resume=True)
    (tmp_path / "net.safetensors.resume").write_bytes(b"no state")
    with pytest.raises(ModelError, match="no readable training state"):
        SMALL["gan"].run(output, device=CPU, resume=True)
    with pytest.raises(UsageError, match="at least 1"):
        SMALL["gan"].run(output, device=CPU, steps=0)
    assert not output.exists()


def test_a_diverging_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the loss \w+ is nan at step \d+; lower the learning rate"):
        replace(SMALL["wgan"], learning_rate=1e30).run(tmp_path / "net.safetensors", device=CPU)


REAL, DRAWN = torch.tensor([2.0, -0.5]), torch.tensor([0.5, -3.0])
SIGMOID = {value: 1 / (1 + math.exp(-value)) for value in (2.0, -0.5, 0.5, -3.0)}
CROSS_ENTROPY = (
    -(math.log(SIGMOID[2.0]) + math.log(SIGMOID[-0.5])) / 2
    - (math.log(1 - SIGMOID[0.5]) + math.log(1 - SIGMOID[-3.0])) / 2
)


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("minimax", CROSS_ENTROPY, (math.log(1 - SIGMOID[0.5]) + math.log(1 - SIGMOID[-3.0])) / 2),
        ("non_saturating", CROSS_ENTROPY, -(math.log(SIGMOID[0.5]) + math.log(SIGMOID[-3.0])) / 2),
        ("hinge", (0 + 1.5) / 2 + (1.5 + 0) / 2, (-0.5 + 3.0) / 2),
        ("wasserstein", (0.5 - 3.0) / 2 - (2.0 - 0.5) / 2, (-0.5 + 3.0) / 2),
    ],
)
def test_adversarial_losses_by_hand(name: str, discriminator: float, generator: float) -> None:
    assert ADVERSARIAL[name].discriminator(REAL, DRAWN).item() == pytest.approx(discriminator, abs=1e-6)
    assert ADVERSARIAL[name].generator(DRAWN).item() == pytest.approx(generator, abs=1e-6)


def test_gradient_penalties_by_hand() -> None:
    def critic(image: Tensor) -> Tensor:
        return (image.flatten(1) ** 2).sum(1)

    real, drawn = torch.full((2, 1, 1, 2), 1.0), torch.full((2, 1, 1, 2), 3.0)
    # The gradient is twice the image: of length 2*sqrt(2)*value.
    lengths = [2 * math.sqrt(2) * value for value in (1.5, 3.0)]
    expected = sum((length - 1) ** 2 for length in lengths) / 2
    assert gradient_penalty(critic, real, drawn, torch.tensor([0.25, 1.0])).item() == pytest.approx(expected, rel=1e-5)
    assert real_gradient_penalty(critic, real).item() == pytest.approx(0.5 * 8.0, rel=1e-6)


def test_variational_losses_by_hand() -> None:
    mean, log_variance = torch.tensor([[-2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)], [0.0, 0.0]])
    expected = 0.5 * (4.0 + (4.0 - 1.0 - math.log(4.0))) / 2
    assert kl_divergence(mean, log_variance).item() == pytest.approx(expected, rel=1e-6)
    logits, image = torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[1.0, 0.25]]]])
    by_hand = math.log(2) - 0.25 * math.log(SIGMOID[2.0]) - 0.75 * math.log(1 - SIGMOID[2.0])
    assert reconstruction(logits, image).item() == pytest.approx(by_hand, rel=1e-6)
    assert reconstruction(logits.expand(3, 1, 1, 2), image.expand(3, 1, 1, 2)).item() == pytest.approx(by_hand)


def test_average_starts_short_and_follows_statistics() -> None:
    average, network = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    network(torch.full((2, 1, 2, 2), 5.0))
    update_average(average, network, decay=0.99, step=0)
    assert average.running_mean is not None
    assert network.running_mean is not None
    assert average.running_mean.item() == pytest.approx(0.9 * network.running_mean.item())
    assert average.num_batches_tracked == network.num_batches_tracked == 1
    update_average(average, network, decay=0.0, step=10**6)
    assert torch.equal(average.running_mean, network.running_mean)


@pytest.mark.parametrize(("step", "rate"), [(0, 2.0), (50, 2.0), (75, 1.0), (99, 0.04)])
def test_learning_rate_falls_over_the_last_half(step: int, rate: float) -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    set_learning_rate(optimiser, 2.0, step, 100)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(rate)


def test_growth_reaches_every_level_and_fades_in() -> None:
    shares = (0.25, 0.25, 0.5)
    assert [growth(shares, progress) for progress in (0.0, 0.2, 0.25, 0.3125, 0.4, 0.5, 0.625, 0.8, 1.0)] == [
        (0, 1.0), (0, 1.0), (1, 0.0), (1, 0.5), (1, 1.0), (2, 0.0), (2, 0.5), (2, 1.0), (2, 1.0),
    ]  # fmt: skip


def test_real_images_fade_as_drawn_ones_do(assert_close: Compare) -> None:
    images = torch.rand(2, 3, 8, 8)
    assert_close(faded(images, 0, 1.0), images, max_abs=0.0)
    halved = torch.nn.functional.avg_pool2d(images, 2)
    assert_close(faded(images, 1, 1.0), halved, max_abs=0.0)
    enlarged = halved.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert_close(faded(images, 0, 0.25), 0.75 * enlarged + 0.25 * images, max_abs=1e-6)


def test_a_recipe_needs_a_share_a_level() -> None:
    with pytest.raises(ModelError, match="4 levels and 2 shares"):
        replace(GROWING, shares=(0.5, 0.5)).trainer(0, CPU)


def test_digits_are_split_once_and_for_all() -> None:
    data = load_digits()
    assert data.train.images.shape == (1438, 1, 28, 28)
    assert data.held_out.images.shape == (359, 1, 28, 28)
    assert 0.0 <= data.train.images.min().item() < data.train.images.max().item() <= 1.0
    assert torch.bincount(data.held_out.labels).min().item() >= 25
    known = {image.numpy().tobytes() for image in data.train.images}
    assert not any(image.numpy().tobytes() in known for image in data.held_out.images)
    assert torch.equal(load_digits().held_out.images, data.held_out.images)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    load_digits.cache_clear()
    with pytest.raises(ModelError, match=r"pip install tilefuse\[train\]"):
        load_digits()


def test_distortion_moves_but_keeps_the_digit() -> None:
    images = load_digits().train.images[:32]
    moved = distorted(images, np.random.default_rng(0))
    assert moved.shape == images.shape
    assert torch.equal(moved, distorted(images, np.random.default_rng(0)))
    assert 0.02 < (moved - images).abs().mean().item() < 0.2


def test_textures_hold_rows_out_and_no_measured_photograph() -> None:
    assert not photographs.HELD_OUT & {Path(name).stem for name in TINTS}
    train, held_out = load_textures(64), load_textures(64, held_out=True)
    for kept, apart in zip(train.sheets, held_out.sheets, strict=True):
        assert min(*kept.shape[:2], *apart.shape[:2]) >= 64
        assert kept.shape[1:] == apart.shape[1:]
    batch = train.batch(np.random.default_rng(0), 5)
    assert batch.shape == (5, 3, 64, 64)
    assert 0.0 <= batch.min().item() < batch.max().item() <= 1.0


def test_crops_reach_every_corner() -> None:
    sheet = np.arange(5 * 4, dtype=np.uint8).reshape(5, 4, 1).repeat(3, 2)
    crops = Textures((sheet,), np.array([1.0]), 2).batch(np.random.default_rng(0), 400)
    corners = {int(crop[0].min() * 255 + 0.5) for crop in crops}
    assert corners == {4 * row + column for row in range(4) for column in range(3)}


def test_frechet_distance_of_gaussians_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20000, 3, generator=generator, dtype=torch.float64)
    noise = (noise - noise.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(noise.T))).T
    first, second = noise * torch.tensor([1.0, 2.0, 3.0]), noise + torch.tensor([1.0, 0.0, -2.0])
    # |m1 - m2|**2 + sum of (s1 - s2)**2 for diagonal covariances.
    assert frechet_distance(first, second) == pytest.approx(5.0 + 0.0 + 1.0 + 4.0, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-6)


def test_patch_distance_orders_pictures() -> None:
    train, held_out = load_textures(32), load_textures(32, held_out=True)
    reference = held_out.batch(np.random.default_rng(0), 64)
    real = train.batch(np.random.default_rng(1), 64)
    blurred = torch.nn.functional.avg_pool2d(real, 5, 1, 2)
    assert patch_distance(reference, reference) < 0.2 * patch_distance(blurred, reference)
    assert patch_distance(real, reference) < patch_distance(blurred, reference)
    assert patch_distance(blurred, reference) < patch_distance(torch.rand_like(real), reference)


def test_digit_quality_of_known_sets() -> None:
    classifier, _ = load_bundled("cnn-digits")
    assert isinstance(classifier, Classifier)
    data = load_digits()
    whole = digit_quality(classifier, data.held_out.images, data.held_out.images, data.held_out.labels)
    assert whole.frechet == pytest.approx(0.0, abs=1e-3)
    assert whole.entropy > 2.25
    ones = data.train.images[data.train.labels == 1]
    collapsed = digit_quality(classifier, ones, data.held_out.images)
    assert collapsed.entropy < 0.3
    assert collapsed.frechet > 100.0
    assert collapsed.accuracy is None


def stored(name: str) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    path = bundled()[name]
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


@pytest.mark.parametrize("name", sorted(LATENT_RECIPES))
def test_bundled_weights_are_those_of_the_recipe(name: str) -> None:
    tensors, metadata = stored(name)
    recipe = LATENT_RECIPES[name]
    _, descriptor = load_bundled(name)
    assert descriptor.architecture == recipe.architecture == metadata["architecture"]
    assert descriptor.hyperparameters == recipe.hyper_parameters
    assert metadata["recipe"] == name
    assert int(metadata["steps"]) == recipe.steps
    assert metadata["licence"] == "Apache-2.0"
    assert {"data", "seed", "quality", "storage"} <= metadata.keys()
    dtype = torch.float16 if recipe.half_precision else torch.float32
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}


# Held-out digits, as the classifier sees them; for textures the share of the distance that noise has.
BARS: dict[str, Mapping[str, float]] = {
    "cnn-digits": {"accuracy": 0.97},
    "gan-digits": {"confidence": 0.85},
    "dcgan-digits": {"confidence": 0.85},
    "cgan-digits": {"confidence": 0.85, "accuracy": 0.9},
    "vae-digits": {"confidence": 0.85, "reconstruction_db": 18.0},
}


@pytest.mark.parametrize("name", sorted(LATENT_RECIPES))
def test_bundled_weights_meet_their_bars(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = load_bundled(name)
    scores = LATENT_RECIPES[name].measure(module)
    if "textures" in name:
        assert scores["patch_distance"] < 0.25 * scores["noise_patch_distance"]
        return
    for key, bar in BARS[name].items():
        assert scores[key] >= bar, key
    if name != "cnn-digits":
        assert scores["entropy"] > 2.15
        assert scores["frechet"] < 0.1 * scores["noise_frechet"]
        claimed = json.loads(stored(name)[1]["quality"])
        assert scores == {key: pytest.approx(value, rel=1e-2, abs=1e-2) for key, value in claimed.items()}


def test_bundled_weights_are_small() -> None:
    assert sum(bundled()[name].stat().st_size for name in LATENT_RECIPES) < 4_000_000


def test_images_of_a_seed_repeat() -> None:
    module, _ = load_bundled("cgan-digits")
    first, labels = draw_images(module, 20, (-1.0, 1.0), seed=5)
    assert labels is not None
    assert labels.tolist() == [*range(10), *range(10)]
    assert torch.equal(first, draw_images(module, 20, (-1.0, 1.0), seed=5)[0])
    assert not torch.equal(first, draw_images(module, 20, (-1.0, 1.0), seed=6)[0])


def test_the_catalogue_trains_latent_recipes_by_name(tmp_path: Path) -> None:
    assert set(recipes.names()) >= set(LATENT_RECIPES)
    seen: list[recipes.StepRecord] = []
    report = recipes.train("cnn-digits", tmp_path / "net.safetensors", steps=3, on_step=seen.append)
    assert [(step.step, step.steps) for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[-1].validation.keys() == report.quality.keys() == {"accuracy"}
    assert report.parameters == 44426
    module, descriptor = load_module(report.output)
    assert module(torch.rand(1, *descriptor.inputs["image"])).shape == (1, 10)
