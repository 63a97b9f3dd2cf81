"""Training recipes: their pictures, that runs repeat and resume, and what the bundled weights measure."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tilefuse.errors import ModelError, UsageError
from tilefuse.export import recipes, weights
from tilefuse.export.recipes import photographs
from tilefuse.export.recipes.dataset import DataMix, build_pool, shrink
from tilefuse.export.recipes.dead_leaves import dead_leaves
from tilefuse.export.recipes.evaluation import luma_psnr
from tilefuse.export.recipes.registry import RECIPES, Recipe
from tilefuse.export.recipes.training import TrainingStep, learning_rate, train_recipe

pytestmark = pytest.mark.thorough

WEIGHTS = Path(weights.__file__).parent
BARS_DB = {"espcn-x2": 1.3, "espcn-x3": 0.9, "espcn-x4": 0.7, "compact-x4": 1.0}
HELD_OUT = {
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "motorcycle_left",
    "motorcycle_right",
    "coins",
    "camera",
    "hubble_deep_field",
}
CPU = torch.device("cpu")
TINY = Recipe(
    "tiny-x2",
    "ESPCN",
    2,
    DataMix(pictures=3, picture_size=96, photograph_share=0.3, photographs=("brick.png",)),
    {"scale": 2, "features": [8, 4], "residual": True},
    steps=20,
    batch=4,
    patch=12,
    warmup=4,
    precision="fp32",
    checkpoint_steps=8,
)


@pytest.fixture
def small_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score a run on the middle of each photograph: on all of it, that takes most of a short run's time."""

    def middle(name: str) -> NDArray[np.uint8]:
        picture = photographs.held_out_photograph(name)
        top, left = picture.shape[0] // 2, picture.shape[1] // 2
        return picture[top - 30 : top + 30, left - 40 : left + 40]

    monkeypatch.setattr("tilefuse.export.recipes.evaluation.held_out_photograph", middle)


def test_dead_leaves_repeat_for_a_seed() -> None:
    picture = dead_leaves([3, 1], 80)
    assert picture.shape == (80, 80, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, dead_leaves([3, 1], 80))
    assert not np.array_equal(picture, dead_leaves([3, 2], 80))
    assert not np.array_equal(picture, dead_leaves([4, 1], 80))


def test_dead_leaves_have_the_statistics_of_photographs() -> None:
    pictures = np.stack([dead_leaves(seed, 128).mean(axis=2) for seed in range(8)])
    assert 70 < pictures.mean() < 185
    assert pictures.std(axis=(1, 2)).min() > 5
    window = np.hanning(128)[:, None] * np.hanning(128)[None, :]
    power = np.mean([np.abs(np.fft.fft2((p - p.mean()) * window)) ** 2 for p in pictures], axis=0)
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None, :])
    band = (frequency > 0.03) & (frequency < 0.35)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    # Photographs measure about -2; noise would be 0 and a smooth ramp -4.
    assert -3.2 < slope < -1.4


def test_held_out_photographs_are_never_trained_on() -> None:
    assert HELD_OUT == photographs.HELD_OUT
    for recipe in RECIPES.values():
        assert not photographs.HELD_OUT & {Path(name).stem for name in recipe.data.photographs}
    for name in (*photographs.MEASURED, *photographs.VALIDATION, "motorcycle_right.png"):
        with pytest.raises(ModelError, match="may not be trained on"):
            photographs.training_photograph(name)
        with pytest.raises(ModelError, match="may not be trained on"):
            build_pool(DataMix(0, 96, 1.0, (name,)), 2, 12, 0)


def test_training_photographs_are_colour_images() -> None:
    for name in photographs.TRAINING:
        picture = photographs.training_photograph(name)
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3


def test_a_missing_scikit_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install tilefuse\[train\]"):
        recipes.evaluate(nn.Upsample(scale_factor=2), 2)


def test_low_resolution_comes_from_pillow() -> None:
    picture = dead_leaves(5, 50)
    small, large = shrink(picture, 4)
    assert large.shape == (48, 48, 3)
    expected = Image.fromarray(picture[:48, :48]).resize((12, 12), Image.Resampling.BICUBIC)
    assert np.array_equal(small, np.asarray(expected))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_patches_of_a_batch_show_the_same_place(scale: int) -> None:
    pool = build_pool(DataMix(2, 96, 0.5, ("brick.png",)), scale, 10, seed=0)
    low, high = pool.batch(np.random.default_rng(1), 16, 10)
    assert low.shape == (16, 3, 10, 10)
    assert high.shape == (16, 3, 10 * scale, 10 * scale)
    # A box average is close to the bicubic reduction; a patch from elsewhere differs by 0.1 and more.
    difference = (F.avg_pool2d(high, scale) - low).abs().mean(dim=(1, 2, 3))
    assert difference.max().item() < 0.05
    wrong = (F.avg_pool2d(high, scale) - low.roll(1, 0)).abs().mean(dim=(1, 2, 3))
    assert wrong.mean().item() > 0.1


def test_luma_psnr_of_a_known_error() -> None:
    reference = np.full((20, 20, 3), 100, dtype=np.uint8)
    brighter = np.full((20, 20, 3), 110, dtype=np.uint8)
    brighter[0] = 255  # in the border, which is not measured
    expected = 20 * math.log10(255 / (10 * 219 / 255))
    assert luma_psnr(brighter, reference, 1) == pytest.approx(expected, abs=1e-3)
    assert luma_psnr(reference, reference, 1) == math.inf


def test_evaluate_gives_nearest_less_than_bicubic() -> None:
    result = recipes.evaluate(nn.Upsample(scale_factor=2), 2)
    assert [image.name for image in result.images] == ["astronaut", "coffee", "chelsea", "rocket", "motorcycle_left"]
    assert result.gain_db == pytest.approx(result.model_db - result.bicubic_db)
    assert -4 < result.gain_db < -1


def test_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate(TINY, step, 100) for step in range(100)]
    assert rates.index(max(rates)) == TINY.warmup - 1
    assert rates[0] == pytest.approx(TINY.learning_rate / 4)
    assert rates[-1] < 0.02 * TINY.learning_rate


@pytest.mark.usefixtures("small_photographs")
def test_training_lowers_the_loss_and_repeats(tmp_path: Path) -> None:
    seen: list[TrainingStep] = []
    log = tmp_path / "log.jsonl"
    recipe = dataclasses.replace(TINY, steps=80, checkpoint_steps=80)
    first = train_recipe(recipe, tmp_path / "a.safetensors", device=CPU, on_step=seen.append, json_log=log)
    train_recipe(recipe, tmp_path / "b.safetensors", device=CPU)
    train_recipe(recipe, tmp_path / "c.safetensors", device=CPU, seed=1)
    losses = [step.loss for step in seen[:56]]  # the part with one kind of loss
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert (tmp_path / "a.safetensors").read_bytes() != (tmp_path / "c.safetensors").read_bytes()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 81))
    assert [line["loss"] for line in lines] == [step.loss for step in seen]
    assert lines[-1]["validation_db"] is not None
    assert first.steps == 80
    assert first.parameters == sum(tensor.numel() for tensor in load_file(tmp_path / "a.safetensors").values())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.safetensors",
        "b.safetensors",
        "c.safetensors",
        "log.jsonl",
    ]


@pytest.mark.usefixtures("small_photographs")
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_a_killed_run_resumes_to_the_same_weights(precision: str, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, precision=precision)

    def kill(step: TrainingStep) -> None:
        if step.step == 13:
            raise KeyboardInterrupt

    whole, halved = tmp_path / "whole.safetensors", tmp_path / "halved.safetensors"
    train_recipe(recipe, whole, device=CPU)
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, halved, device=CPU, on_step=kill)
    assert not halved.exists()
    steps: list[int] = []
    train_recipe(recipe, halved, device=CPU, resume=True, on_step=lambda step: steps.append(step.step))
    assert steps == list(range(9, 21))
    assert whole.read_bytes() == halved.read_bytes()


@pytest.mark.usefixtures("small_photographs")
def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"

    def kill(step: TrainingStep) -> None:
        if step.step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(TINY, output, device=CPU, on_step=kill)
    with pytest.raises(ModelError, match="another recipe, seed or number of steps"):
        train_recipe(TINY, output, device=CPU, resume=True, seed=1)
    state = tmp_path / "net.safetensors.resume"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ModelError, match="no readable training state"):
        train_recipe(TINY, output, device=CPU, resume=True)


def test_an_unknown_recipe_and_no_steps_are_usage_errors(tmp_path: Path) -> None:
    assert set(recipes.names()) >= set(BARS_DB)
    with pytest.raises(UsageError, match="espcn-x4"):
        recipes.train("espcn-x9", tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="at least 1"):
        recipes.train("espcn-x4", tmp_path / "x.safetensors", steps=0)


def test_progress_draws_the_loss_and_the_gain() -> None:
    from io import StringIO

    from rich.console import Console

    terminal, pipe = StringIO(), StringIO()
    for stream, is_terminal in ((terminal, True), (pipe, False)):
        console = Console(file=stream, force_terminal=is_terminal, width=120)
        with recipes.training_progress(console) as on_step:
            on_step(TrainingStep(7, 10, 0.125, 1e-3, 0.5))
    assert "0.1250" in terminal.getvalue()
    assert "gain_db 0.5" in terminal.getvalue()
    assert pipe.getvalue().strip() == ""


@pytest.mark.parametrize("name", sorted(BARS_DB))
def test_bundled_weights_measure_what_they_say(name: str) -> None:
    path, recipe = WEIGHTS / f"{name}.safetensors", RECIPES[name]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    network = recipe.build()
    tensors = load_file(path)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    network.load_state_dict(tensors)
    result = recipes.evaluate(network.eval(), recipe.scale)
    claimed = json.loads(metadata["psnr"])
    print(name, f"gain {result.gain_db:.3f} dB, claimed {metadata['gain_db']}")
    assert result.gain_db >= BARS_DB[name]
    assert result.gain_db == pytest.approx(float(metadata["gain_db"]), abs=5e-3)
    for image in result.images:
        assert image.model_db == pytest.approx(claimed[image.name]["model"], abs=5e-3)
        assert image.bicubic_db == pytest.approx(claimed[image.name]["bicubic"], abs=5e-3)


@pytest.mark.parametrize("name", sorted(BARS_DB))
def test_bundled_weights_come_from_the_recipe_as_it_is(name: str) -> None:
    recipe = RECIPES[name]
    with safe_open(WEIGHTS / f"{name}.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["recipe"] == name
    assert metadata["architecture"] == recipe.architecture
    assert json.loads(metadata["hyper_parameters"]) == recipe.hyper_parameters
    assert metadata["scale"] == str(recipe.scale)
    assert metadata["steps"] == str(recipe.steps)
    assert metadata["seed"] == "0"
    assert metadata["licence"] == "Apache-2.0"
    assert str(recipe.data.pictures) in metadata["data"]


def test_bundled_weights_are_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) < 12_000_000
