"""Restoration: the network and its checkpoints, tiles, masks, the recipe, and what the bundled weights are worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import tilefuse
from tests.conftest import Compare
from tests.pictures import noise
from tilefuse.errors import ModelError, UsageError
from tilefuse.export.architectures import build, infer
from tilefuse.export.checkpoints import bundled, load_bundled, load_module
from tilefuse.export.generators.restoration import RestorationNet, interpolate
from tilefuse.export.recipes.corruption import HOLE_SHARE, add_noise, square_holes
from tilefuse.export.recipes.dataset import DataMix
from tilefuse.export.recipes.picture_recipes import PICTURE_RECIPES
from tilefuse.export.recipes.restoration import RestorationRecipe, RestorationTrainer
from tilefuse.export.recipes.restoration_quality import means, measure_denoising, measure_inpainting

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
NAMES = ("restore-denoise", "restore-inpaint")
TINY: dict[str, dict[str, object]] = {
    "denoising": {"widths": (4, 6, 8), "dilations": (1,)},
    "inpainting": {"in_channels": 4, "widths": (4, 6, 6), "dilations": (1, 2)},
}
FEW = DataMix(0, 64, 1.0, photographs=("text.png",))


class Killed(Exception):
    """Stands for the signal that stops a run."""


def tiny(kind: str) -> RestorationNet:
    torch.manual_seed(1)
    return RestorationNet(**TINY[kind]).eval().requires_grad_(False)  # type: ignore[arg-type]


@cache
def tiny_engine(kind: str, tile: int = 0) -> tilefuse.Engine:
    return tilefuse.load(tiny(kind), backend="torch_eager", tile=tile)


def recipe(damage: str) -> RestorationRecipe:
    base = PICTURE_RECIPES["restore-denoise" if damage == "noise" else "restore-inpaint"]
    assert isinstance(base, RestorationRecipe)
    kind = "denoising" if damage == "noise" else "inpainting"
    return replace(base, hyper_parameters=TINY[kind], steps=4, batch=2, patch=32, checkpoint_steps=2, pictures=FEW)


@pytest.mark.parametrize("kind", TINY)
def test_a_checkpoint_tells_its_network(kind: str) -> None:
    module = tiny(kind)
    weights = dict(module.state_dict())
    metadata = {"hyper_parameters": json.dumps({"dilations": TINY[kind]["dilations"]})}
    descriptor = infer(weights, metadata)
    assert descriptor.architecture == "RestorationNet"
    assert descriptor.hyperparameters == {"in_channels": 3, **TINY[kind]}
    image = torch.rand(1, descriptor.in_channels, 32, 64)
    assert torch.equal(build(descriptor, weights)(image), module(image))


@pytest.mark.parametrize("dilations", [[1], [1, 0], [1, 2.5], [1, 1000], "11", [True, True]])
def test_dilations_that_cannot_be_are_refused(dilations: object) -> None:
    with pytest.raises(ModelError, match="2 whole numbers of 1 to 64"):
        infer(dict(tiny("inpainting").state_dict()), {"hyper_parameters": json.dumps({"dilations": dilations})})


@pytest.mark.parametrize("size", [(330, 75), (61, 301)])
@pytest.mark.parametrize("kind", TINY)
def test_tiled_equals_untiled(kind: str, size: tuple[int, int], assert_close: Compare) -> None:
    image, holes = noise((*size, 3), "float32"), square_holes(*size, np.random.default_rng(0))
    engines = tiny_engine(kind, 0), tiny_engine(kind, 16)
    assert engines[1].plan(*size).windows > 1
    assert engines[0].footprint.global_ops == ()
    whole, tiled = (engine(image, mask=holes if kind == "inpainting" else None) for engine in engines)
    assert_close(torch.from_numpy(tiled), torch.from_numpy(whole), what=kind)


def test_known_pixels_stay_and_holes_are_not_looked_at() -> None:
    module, image = tiny("inpainting"), torch.rand(1, 3, 32, 32)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 5:13, 7:20] = 1.0
    filled = module(torch.cat([image, mask], 1))
    assert torch.equal(filled * (1 - mask), image * (1 - mask))
    other = torch.where(mask > 0, torch.rand_like(image), image)
    assert torch.equal(module(torch.cat([other, mask], 1)), filled)
    assert not torch.equal(filled, image)


def test_holes_start_as_what_surrounds_them() -> None:
    flat = torch.tensor([0.2, 0.7, 0.4])[None, :, None, None].expand(1, 3, 64, 64)
    known = torch.ones(1, 1, 64, 64)
    known[..., 10:45, 8:50] = 0.0
    assert (interpolate(flat * known, known) - flat).abs().max() < 0.01
    nothing = interpolate(torch.zeros(1, 3, 64, 64), torch.zeros(1, 1, 64, 64))
    assert torch.allclose(nothing, torch.full_like(nothing, 0.5))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_engine_keeps_known_pixels_to_the_last_bit(dtype: str) -> None:
    engine = tiny_engine("inpainting")
    image, holes = noise((37, 45, 4), dtype), square_holes(37, 45, np.random.default_rng(1))
    filled = engine(image, mask=holes)
    assert (filled.shape, filled.dtype) == (image.shape, image.dtype)
    assert np.array_equal(filled[~holes], image[~holes])
    assert not np.array_equal(filled[holes], image[holes])
    assert np.array_equal(engine(image), image)
    gray = engine(image[..., 0], mask=Image.fromarray(holes))
    assert gray.shape == (37, 45)


def test_a_streamed_job_takes_no_mask(tmp_path: Path) -> None:
    Image.fromarray(noise((37, 45, 3), "uint8")).save(tmp_path / "in.png")
    Image.new("L", (45, 37), 255).save(tmp_path / "mask.png")
    engine = tiny_engine("inpainting")
    engine.run_file(tmp_path / "in.png", tmp_path / "out.png", mask=tmp_path / "mask.png")
    with pytest.raises(UsageError, match="a mask needs the image in memory"):
        engine.run_file(tmp_path / "in.png", tmp_path / "out.npy", mask=tmp_path / "mask.png")
    assert not (tmp_path / "out.npy").exists()


def test_holes_cover_their_share_in_squares() -> None:
    holes = square_holes(200, 300, np.random.default_rng(0))
    assert HOLE_SHARE <= holes.mean() < HOLE_SHARE + 32 * 32 / holes.size
    assert np.array_equal(holes, square_holes(200, 300, np.random.default_rng(0)))
    # Every hole is a square of 8 pixels or more: opening with one of 8 takes nothing away.
    windows = np.lib.stride_tricks.sliding_window_view(holes, (8, 8)).all((2, 3))
    covered = np.zeros_like(holes)
    for top, left in np.argwhere(windows):
        covered[top : top + 8, left : left + 8] = True
    assert np.array_equal(covered, holes)


def test_noise_has_the_level_asked_for() -> None:
    noisy = add_noise(torch.full((2, 3, 64, 64), 0.5), np.random.default_rng(0))
    assert noisy.std().item() == pytest.approx(25 / 255, rel=0.03)
    assert noisy.mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("damage", ["noise", "holes"])
def test_a_killed_run_resumes_to_the_same_bytes(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RestorationRecipe, "measure", lambda *_: {"score": 1.0})
    monkeypatch.setattr(RestorationTrainer, "validate", lambda _: {"score": 1.0})
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    recipe(damage).run(whole, device=CPU, seed=3)
    with pytest.raises(Killed):
        recipe(damage).run(broken, device=CPU, seed=3, on_step=kill_after(3))
    assert not broken.exists()
    report = recipe(damage).run(broken, device=CPU, seed=3, resume=True)
    assert broken.read_bytes() == whole.read_bytes()
    assert report.steps == 4
    with safe_open(whole, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["hyper_parameters"])["dilations"] == list(recipe(damage).hyper_parameters["dilations"])
    assert load_module(whole)[1].architecture == "RestorationNet"


def kill_after(last: int) -> Callable[[object], None]:
    def on_step(done: object) -> None:
        if done.step == last:  # type: ignore[attr-defined]
            raise Killed

    return on_step


@pytest.mark.parametrize("name", NAMES)
def test_bundled_weights_are_those_of_the_recipe(name: str) -> None:
    with safe_open(bundled()[name], framework="pt") as file:
        metadata = file.metadata()
    _, descriptor = load_bundled(name)
    assert descriptor.hyperparameters == PICTURE_RECIPES[name].hyper_parameters
    assert (metadata["recipe"], int(metadata["steps"])) == (name, PICTURE_RECIPES[name].steps)
    assert {"psnr_db", "ssim"} <= json.loads(metadata["quality"]).keys()
    assert bundled()[name].stat().st_size < 1_200_000


def test_denoising_of_a_held_out_photograph_meets_its_bar() -> None:
    scores = means(measure_denoising(load_bundled("restore-denoise")[0], ("chelsea.png",)))
    assert scores["input"]["psnr_db"] == pytest.approx(20.3, abs=0.5)
    assert scores["model"]["psnr_db"] >= scores["input"]["psnr_db"] + 4.0
    for method in ("median 3x3", "median 5x5"):
        assert scores["model"]["psnr_db"] > scores[method]["psnr_db"] + 1.0
        assert scores["model"]["ssim"] > scores[method]["ssim"]


def test_inpainting_of_a_held_out_photograph_meets_its_bar() -> None:
    scores = means(measure_inpainting(load_bundled("restore-inpaint")[0], ("chelsea.png",)))
    assert scores["model"]["psnr_db"] >= scores["mean fill"]["psnr_db"] + 3.0
    assert scores["model"]["ssim"] > scores["mean fill"]["ssim"]
