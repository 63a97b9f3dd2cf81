"""Upscalers beyond the main job's: how they start, their adversarial stage, and what the bundled weights measure."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import tilefuse
from tilefuse.export.checkpoints import bundled, load_bundled
from tilefuse.export.generators.edsr import EDSR
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.export.generators.span import SPAN
from tilefuse.export.generators.srresnet import SRResNet
from tilefuse.export.recipes import adversarial_stage, evaluate
from tilefuse.export.recipes.dataset import DataMix
from tilefuse.export.recipes.losses import relativistic_average
from tilefuse.export.recipes.random_features import RandomFeatures, perceptual_distance
from tilefuse.export.recipes.registry import RECIPES, AdversarialStage, Recipe
from tilefuse.export.recipes.resume import new_state
from tilefuse.export.recipes.starts import start_as_interpolation
from tilefuse.export.recipes.training import TrainingStep, learning_rate, train_recipe

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
BARS_DB = {"fsrcnn-x2": 1.3, "edsr-x2": 1.3, "span-x2": 1.3, "srgan-x4": 0.7, "esrgan-x4": 0.7}
LARGEST_BYTES = {
    "fsrcnn-x2": 150_000,
    "edsr-x2": 1_400_000,
    "span-x2": 700_000,
    "srgan-x4": 1_500_000,
    "esrgan-x4": 1_500_000,
}
STAGE = AdversarialStage("relativistic", weight=0.01, perceptual_weight=0.1, share=0.5, features=4, stages=3)
TINY = Recipe(
    "tiny-x2",
    "SRResNet",
    2,
    DataMix(pictures=2, picture_size=64, photograph_share=0.0, photographs=()),
    {"channels": 8, "num_block": 1, "num_upsample": 1},
    steps=4,
    batch=2,
    patch=8,
    warmup=1,
    precision="fp32",
    checkpoint_steps=3,
    adversarial=STAGE,
)
STARTED = [
    (FSRCNN, {"scale": 2, "channels": 3, "d": 16, "s": 8, "m": 2}, 2, "bicubic"),
    (EDSR, {"num_feat": 16, "num_block": 2, "upscale": 2, "img_range": 1.0}, 2, "bilinear"),
    (SPAN, {"feature_channels": 16, "upscale": 3, "img_range": 10.0}, 3, "bilinear"),
    (SRResNet, {"channels": 16, "num_block": 2, "num_upsample": 1}, 2, "bilinear"),
    (RRDBNet, {"num_feat": 16, "num_block": 1, "num_grow_ch": 4}, 4, "bilinear"),
]


@pytest.mark.parametrize(("family", "hyperparameters", "scale", "mode"), STARTED)
def test_networks_start_as_an_interpolation(
    family: type[nn.Module], hyperparameters: dict[str, Any], scale: int, mode: str
) -> None:
    torch.manual_seed(0)
    network = family(**hyperparameters)
    image = torch.rand(1, 3, 12, 13)
    with torch.no_grad():
        random = network.eval()(image)
        start_as_interpolation(network)
        started = network(image)
    expected = F.interpolate(image, scale_factor=float(scale), mode=mode)
    inside = (..., slice(4 * scale, -4 * scale), slice(4 * scale, -4 * scale))
    error, before = ((side - expected)[inside].square().mean().sqrt().item() for side in (started, random))
    # What the untrained features add is small beside what random weights give.
    assert error < 0.1
    assert error < 0.3 * before


def test_relativistic_average_of_hand_written_logits() -> None:
    def log_sigmoid(value: float) -> float:
        return -math.log1p(math.exp(-value))

    higher, lower = [2.0, 0.0], [-1.0, 0.5]
    mean_higher, mean_lower = 1.0, -0.25
    expected = -sum(log_sigmoid(value - mean_lower) for value in higher) / 2
    expected -= sum(log_sigmoid(mean_higher - value) for value in lower) / 2
    assert relativistic_average(torch.tensor(higher), torch.tensor(lower)).item() == pytest.approx(expected, rel=1e-5)


def test_perceptual_distance_is_the_mean_of_rectified_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    features = RandomFeatures(4, 3, 2, channels=1)
    monkeypatch.setattr(features, "weight", torch.zeros(4, 1, 3, 3))
    features.weight[:2, :, 1, 1] = torch.tensor([[1.0], [-1.0]])
    monkeypatch.setattr(features, "bias", torch.zeros(4))
    images = torch.full((1, 1, 16, 16), 0.75), torch.full((1, 1, 16, 16), 0.25)
    # One filter in four sees the difference of a half, the negated one gives nothing, two are empty.
    assert perceptual_distance(features, *images).item() == pytest.approx(0.125)
    assert len(features(images[0])) == 2
    assert features(images[0][..., :15])[0].shape == (1, 4, 16, 15)
    assert len(features(images[0][..., :15])) == 1


def test_random_features_are_the_same_each_time_and_see_structure_apart_from_colour() -> None:
    first, second = RandomFeatures(16, 5, 1), RandomFeatures(16, 5, 1)
    assert torch.equal(first.weight, second.weight)
    flat = first(torch.full((1, 3, 9, 9), 0.6))[0]
    assert flat[:, 4:].abs().max().item() < 1e-5
    assert flat[:, :4].max().item() > 0.01


@pytest.mark.thorough
@pytest.mark.parametrize("loss", ["relativistic", "non_saturating", "hinge"])
def test_the_critic_learns_and_the_loss_leads_towards_the_real(loss: str) -> None:
    stage = dataclasses.replace(STAGE, loss=loss, weight=1.0, perceptual_weight=0.0)
    state = new_state(dataclasses.replace(TINY, adversarial=stage), 0, CPU)
    assert state.critic is not None
    plain = torch.autocast("cpu", torch.bfloat16, enabled=False)
    generator = torch.Generator().manual_seed(1)
    real, drawn = (torch.rand(8, 3, 16, 16, generator=generator) * span for span in (1.0, 0.3))
    before = _gap(state.critic.network, real, drawn)
    for _ in range(20):
        adversarial_stage.train_critic(stage, state.critic, real, drawn, 2e-3, plain)
    assert _gap(state.critic.network, real, drawn) > before + 0.5
    losses = [adversarial_stage.unlikeness(stage, state.critic.network, real, x, plain).item() for x in (drawn, real)]
    assert losses[1] < losses[0] - 0.1
    weighed = dataclasses.replace(stage, weight=0.0, perceptual_weight=2.0)
    assert adversarial_stage.unlikeness(weighed, state.critic.network, real, real, plain).item() == 0.0
    assert adversarial_stage.unlikeness(weighed, state.critic.network, real, drawn, plain).item() > 0.05


def _gap(critic: nn.Module, real: Tensor, drawn: Tensor) -> float:
    with torch.no_grad():
        return (critic(real).mean() - critic(drawn).mean()).item()


def test_the_stage_has_its_own_learning_rate() -> None:
    rates = [learning_rate(TINY, step, 100) for step in range(100)]
    assert TINY.reconstruction_steps(100) == 50
    assert rates[0] == pytest.approx(TINY.learning_rate)
    assert rates[49] < 0.02 * TINY.learning_rate
    assert rates[50] == pytest.approx(STAGE.learning_rate)
    assert rates[75] == pytest.approx(STAGE.learning_rate / 2)
    assert RECIPES["espcn-x2"].reconstruction_steps(100) == 100


@pytest.mark.thorough
def test_a_run_killed_in_the_adversarial_stage_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Scores of photographs are another test's; here they would take most of the time.
    scored = evaluate(nn.Upsample(scale_factor=2), 2, ("coins.png",))
    monkeypatch.setattr("tilefuse.export.recipes.training.evaluate", lambda *_: scored)

    def kill(step: TrainingStep) -> None:
        if step.step == 4:
            raise KeyboardInterrupt

    whole, halved, without = (tmp_path / f"{name}.safetensors" for name in ("whole", "halved", "without"))
    recipe = dataclasses.replace(TINY, steps=5)
    train_recipe(recipe, whole, device=CPU)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, halved, device=CPU, on_step=kill)
    steps: list[int] = []
    train_recipe(recipe, halved, device=CPU, resume=True, on_step=lambda step: steps.append(step.step))
    assert steps == [4, 5]
    assert whole.read_bytes() == halved.read_bytes()
    train_recipe(dataclasses.replace(recipe, adversarial=dataclasses.replace(STAGE, weight=0.0)), without, device=CPU)
    assert whole.read_bytes() != without.read_bytes()


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(BARS_DB))
def test_bundled_weights_are_the_recipe_s_and_pass_their_bar(name: str) -> None:
    recipe, path = RECIPES[name], bundled()[name]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert path.stat().st_size <= LARGEST_BYTES[name]
    assert metadata["recipe"] == name
    assert json.loads(metadata["hyper_parameters"]) == recipe.hyper_parameters
    assert (metadata["steps"], metadata["seed"]) == (str(recipe.steps), "0")
    assert float(metadata["gain_db"]) >= BARS_DB[name]
    assert float(metadata["ssim_gain"]) > 0
    module, descriptor = load_bundled(name)
    assert (descriptor.scale, descriptor.in_channels) == (recipe.scale, 3)
    score = evaluate(module, recipe.scale, ("astronaut.png",)).images[0]
    claimed = json.loads(metadata["psnr"])["astronaut"]
    assert score.model_db - score.bicubic_db >= BARS_DB[name]
    assert score.model_db == pytest.approx(claimed["model"], abs=5e-3)


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(BARS_DB))
def test_bundled_weights_run_through_the_engine_in_tiles(name: str, assert_close) -> None:  # type: ignore[no-untyped-def]
    from tilefuse.export.recipes.photographs import held_out_photograph

    crop = np.ascontiguousarray(held_out_photograph("astronaut.png")[60:81, 200:223])
    image = torch.tensor(crop).permute(2, 0, 1)[None].float() / 255.0
    module, _ = load_bundled(name)
    engine = tilefuse.load(name, backend="torch_eager", precision="fp32", tile=16)
    with torch.no_grad():
        assert_close(torch.as_tensor(engine(image)), module(image))
