"""Compression: the autoencoder and its checkpoints, its files, tiles, the recipe, and what the weights are worth."""

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
from tilefuse.compression import Codec, compress_file, decompress_file, load_codec, psnr_db
from tilefuse.errors import ImageError, ModelError, UsageError
from tilefuse.export.architectures import build, infer
from tilefuse.export.checkpoints import bundled, load_bundled, load_module
from tilefuse.export.generators.autoencoder import Autoencoder
from tilefuse.export.recipes.compression import (
    CompressionRecipe,
    CompressionTrainer,
    LatentPrior,
    start_as_cosine_transform,
)
from tilefuse.export.recipes.compression_quality import measure_compression
from tilefuse.export.recipes.dataset import DataMix
from tilefuse.export.recipes.photographs import held_out_photograph
from tilefuse.export.recipes.picture_recipes import PICTURE_RECIPES
from tilefuse.export.recipes.restoration_quality import means
from tilefuse.images import Picture
from tilefuse.planes import run_planes

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
DTYPES = {"uint8": 255, "uint16": 65535, "float32": 1}


class Killed(Exception):
    """Stands for the signal that stops a run."""


def tiny() -> Autoencoder:
    torch.manual_seed(1)
    network = Autoencoder((4, 4, 6), 16)
    start_as_cosine_transform(network)
    return network.eval().requires_grad_(False)


@cache
def tiny_codec() -> Codec:
    return load_codec(tiny(), backend="torch_eager")


def smooth(height: int, width: int, depth: int = 3, dtype: str = "uint8") -> np.ndarray:
    """Draw a picture that low frequencies can say."""
    y, x = np.mgrid[:height, :width] / 40.0
    planes = np.stack([0.5 + 0.4 * np.sin(y + phase) * np.cos(x - phase) for phase in range(depth)], axis=2)
    levels = planes * DTYPES[dtype]
    return levels.astype(np.float32) if dtype == "float32" else np.rint(levels).astype(dtype)


def recipe() -> CompressionRecipe:
    base = PICTURE_RECIPES["autoencoder"]
    assert isinstance(base, CompressionRecipe)
    return replace(
        base,
        hyper_parameters={**base.hyper_parameters, "widths": (4, 4, 6), "latents": 8},
        steps=4,
        batch=2,
        patch=32,
        checkpoint_steps=2,
        pictures=DataMix(0, 64, 1.0, photographs=("text.png",)),
    )


def test_a_checkpoint_tells_its_network() -> None:
    module = tiny()
    weights = dict(module.state_dict())
    descriptor = infer(weights)
    assert descriptor.architecture == "Autoencoder"
    assert {key: descriptor.hyperparameters[key] for key in ("widths", "latents")} == {
        "widths": (4, 4, 6),
        "latents": 16,
    }
    image = torch.rand(1, 3, 16, 24)
    assert torch.equal(build(descriptor, weights)(image), module(image))


def test_the_network_starts_as_an_orthonormal_transform() -> None:
    network = Autoencoder((4, 4, 6), 32)
    start_as_cosine_transform(network)
    basis = network.encoder.transform.weight.detach().flatten(1).double()
    assert torch.allclose(basis @ basis.T, torch.eye(32, dtype=torch.float64), atol=1e-6)
    flat = torch.tensor([0.2, 0.7, 0.4])[None, :, None, None].expand(1, 3, 24, 16)
    with torch.no_grad():
        assert torch.allclose(network(flat), flat, atol=1e-5)


def test_the_round_trip_in_one_network_is_run() -> None:
    engine = tilefuse.load(tiny(), backend="torch_eager")
    image = smooth(41, 53)
    result = engine(image)
    assert (result.shape, result.dtype) == (image.shape, image.dtype)
    assert psnr_db(result, image) > 35


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width", "depth"), [(1, 1, 3), (8, 8, 1), (41, 53, 3), (64, 17, 1)])
def test_any_size_and_samples_come_back_as_they_were(height: int, width: int, depth: int, dtype: str) -> None:
    image = smooth(height, width, depth, dtype)
    decoded = tiny_codec().decode(tiny_codec().encode(Picture(image))).pixels
    assert (decoded.shape, decoded.dtype) == (image.shape, image.dtype)
    assert psnr_db(decoded, image) > 25


def test_encoder_and_decoder_tile_exactly(assert_close: Compare) -> None:
    module = tiny()
    for half, planes in (
        (module.encoder, noise((120, 136, 3), "float32")),
        (module.decoder, noise((60, 50, 16), "float32")),
    ):
        engines = [tilefuse.load(half, backend="torch_eager", tile=edge) for edge in (0, 16)]
        assert engines[1].plan(*planes.shape[:2]).windows > 1
        assert engines[1].footprint.global_ops == ()
        whole, tiled = (torch.from_numpy(run_planes(engine, planes)) for engine in engines)
        assert_close(tiled, whole, max_abs=1e-4, what=type(half).__name__)


def test_planes_of_other_channels_are_refused() -> None:
    with pytest.raises(ImageError, match="planes of 5 channels"):
        run_planes(tiny_codec().decoder, noise((4, 4, 5), "float32"))


def test_files_come_back(tmp_path: Path) -> None:
    image = smooth(41, 53)
    Image.fromarray(image).save(tmp_path / "in.png")
    packed = compress_file(tiny_codec(), tmp_path / "in.png", tmp_path / "f.tfz")
    unpacked = decompress_file(tiny_codec(), tmp_path / "f.tfz", tmp_path / "out.png")
    result = np.asarray(Image.open(tmp_path / "out.png"))
    assert packed.file_bytes == (tmp_path / "f.tfz").stat().st_size == unpacked.file_bytes
    assert packed.bits_per_pixel == pytest.approx(8 * packed.file_bytes / (41 * 53))
    assert packed.psnr_db == pytest.approx(psnr_db(result, image))
    with pytest.raises(UsageError, match="already exists"):
        compress_file(tiny_codec(), tmp_path / "in.png", tmp_path / "f.tfz")
    with pytest.raises(UsageError, match=r"called \.tfz"):
        compress_file(tiny_codec(), tmp_path / "in.png", tmp_path / "f.bin")


def test_a_damaged_file_leaves_nothing(tmp_path: Path) -> None:
    Image.fromarray(smooth(41, 53)).save(tmp_path / "in.png")
    compress_file(tiny_codec(), tmp_path / "in.png", tmp_path / "f.tfz")
    whole = (tmp_path / "f.tfz").read_bytes()
    for data in (whole[:-1], whole[:40], b"", whole[:80] + b"\0" + whole[81:], (tmp_path / "in.png").read_bytes()):
        (tmp_path / "f.tfz").write_bytes(data)
        with pytest.raises(ImageError, match=r"f\.tfz"):
            decompress_file(tiny_codec(), tmp_path / "f.tfz", tmp_path / "out.png")
    with pytest.raises(ImageError, match=r"none\.tfz"):
        decompress_file(tiny_codec(), tmp_path / "none.tfz", tmp_path / "out.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.tfz", "in.png"]


def test_a_file_of_another_model_is_refused() -> None:
    data = replace(tiny_codec(), model=bytes(32)).encode(Picture(smooth(16, 16)))
    with pytest.raises(ImageError, match="another model"):
        tiny_codec().decode(data)


def test_transparency_is_refused_and_opacity_is_not() -> None:
    alpha = np.full((16, 16), 255, np.uint8)
    tiny_codec().encode(Picture(smooth(16, 16), alpha))
    alpha[3, 3] = 0
    with pytest.raises(ImageError, match="transparent"):
        tiny_codec().encode(Picture(smooth(16, 16), alpha))


def test_a_model_without_halves_is_refused() -> None:
    with pytest.raises(ModelError, match="no autoencoder"):
        load_codec("vae-digits")


def test_the_prior_counts_bits() -> None:
    prior = LatentPrior(2)
    whole = torch.arange(-200, 201, dtype=torch.float32).expand(1, 2, 1, 401)
    chance = 2.0 ** -torch.stack([prior.bits(whole[..., i : i + 1]) / 2 for i in range(195, 206)])
    # The chances of the whole numbers near the middle are nearly all there is, and fall to both sides alike.
    assert chance.sum().item() == pytest.approx(1.0, abs=0.01)
    assert torch.allclose(chance, chance.flip(0))
    assert chance.argmax() == 5


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompressionRecipe, "measure", lambda *_: {"score": 1.0})
    monkeypatch.setattr(CompressionTrainer, "validate", lambda _: {"score": 1.0})
    whole, broken = tmp_path / "whole.safetensors", tmp_path / "broken.safetensors"
    recipe().run(whole, device=CPU, seed=3)
    with pytest.raises(Killed):
        recipe().run(broken, device=CPU, seed=3, on_step=kill_after(3))
    recipe().run(broken, device=CPU, seed=3, resume=True)
    assert broken.read_bytes() == whole.read_bytes()
    assert load_module(whole)[1].architecture == "Autoencoder"


def kill_after(last: int) -> Callable[[object], None]:
    def on_step(done: object) -> None:
        if done.step == last:  # type: ignore[attr-defined]
            raise Killed

    return on_step


def test_bundled_weights_are_those_of_the_recipe() -> None:
    with safe_open(bundled()["autoencoder"], framework="pt") as file:
        metadata = file.metadata()
    assert load_bundled("autoencoder")[1].hyperparameters == PICTURE_RECIPES["autoencoder"].hyper_parameters
    assert int(metadata["steps"]) == PICTURE_RECIPES["autoencoder"].steps
    quality = json.loads(metadata["quality"])
    assert quality["psnr_db"] >= 26.0
    assert quality["bits_per_pixel"] <= 1.0
    assert bundled()["autoencoder"].stat().st_size < 1_200_000


def test_a_held_out_photograph_meets_its_bar() -> None:
    module, _ = load_bundled("autoencoder")
    assert isinstance(module, Autoencoder)
    scores = means(measure_compression(module, ("chelsea.png",)))
    assert scores["model"]["psnr_db"] >= 26.0
    assert scores["model"]["bits_per_pixel"] <= 1.0
    assert scores["JPEG"]["bits_per_pixel"] <= scores["model"]["bits_per_pixel"]


def test_the_files_rate_and_quality_are_those_measured(tmp_path: Path) -> None:
    photograph = held_out_photograph("chelsea.png")[:104, :120]
    Image.fromarray(photograph).save(tmp_path / "in.png")
    done = compress_file(load_codec(backend="torch_eager"), tmp_path / "in.png", tmp_path / "f.tfz")
    assert done.bits_per_pixel < 1.2
    assert done.psnr_db is not None
    assert done.psnr_db > 24
