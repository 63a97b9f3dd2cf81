"""Measures any trained model on held-out data, beside what needs no network: the work of `train --evaluate`."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from tilefuse.errors import ModelError
from tilefuse.export.checkpoints import bundled, load_bundled, load_module
from tilefuse.export.descriptor import Descriptor
from tilefuse.export.generators.autoencoder import Autoencoder
from tilefuse.export.generators.classifier import Classifier
from tilefuse.export.generators.restoration import MASKED, RestorationNet
from tilefuse.export.generators.vae import VAE
from tilefuse.export.recipes.classification import accuracy
from tilefuse.export.recipes.compression_quality import measure_compression
from tilefuse.export.recipes.digits import SIZE, load_digits
from tilefuse.export.recipes.evaluation import evaluate
from tilefuse.export.recipes.restoration_quality import PictureScore, measure_denoising, measure_inpainting
from tilefuse.export.recipes.sources import SAMPLES, compare_generator
from tilefuse.export.recipes.style_recipes import STYLE_RECIPES

MEAN = "mean"


@dataclass(frozen=True)
class Row:
    """What one method is worth on one subject (a photograph, or a set of images), by the names of measures."""

    subject: str
    method: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Measurement:
    """The rows of one model; the method `model` is its own. `task` says what was measured, and how."""

    model: str
    task: str
    rows: tuple[Row, ...]


def measure(source: str | os.PathLike[str]) -> Measurement:
    """Measures a bundled model or a checkpoint by its kind, on photographs and digits that training never sees.

    Super-resolution: PSNR and SSIM of the luma beside bicubic. Restoration: PSNR of the colours and SSIM beside median
    filters, or mean fill and interpolation. Compression: the same at the file's rate, beside JPEG. Generators of
    digits: the classifier's confidence, the entropy of the classes it sees and the Fréchet distance of its features;
    of textures: the distance of patches; both beside real images and noise. The classifier: accuracy.

    Raises:
        ModelError: no such model, or one of a kind for which nothing held out tells its worth.
    """
    name = os.fspath(source)
    is_bundled = name in bundled()
    path = Path(source)
    if not is_bundled and not path.suffix and len(path.parts) == 1 and not path.exists():
        load_bundled(name)  # raises, naming the nearest
    module, descriptor = load_bundled(name) if is_bundled else load_module(path)
    if isinstance(module, Classifier):
        return _of_classifier(name, module)
    if isinstance(module, RestorationNet):
        masked = descriptor.in_channels == MASKED
        task = "inpainting of a quarter in squares, PSNR in the holes" if masked else "denoising, deviation 25/255"
        return _of_pictures(name, task, (measure_inpainting if masked else measure_denoising)(module))
    if isinstance(module, Autoencoder):
        return _of_pictures(name, "compression, rate of the whole file", measure_compression(module))
    if "latent" in descriptor.inputs:
        return _of_generator(name, module, descriptor)
    if name in STYLE_RECIPES and is_bundled:
        quality = STYLE_RECIPES[name].measure(module)
        return Measurement(name, "style transfer", (Row(MEAN, "model", dict(quality)),))
    if (descriptor.in_channels, descriptor.out_channels) == (3, 3) and descriptor.scale > 1:
        return _of_upscaler(name, module, descriptor.scale)
    raise ModelError(f"{name} is a {descriptor.architecture}, for which nothing held out tells its worth")


def _of_upscaler(name: str, module: nn.Module, scale: int) -> Measurement:
    rows = []
    for image in evaluate(module, scale).images:
        rows.append(Row(image.name, "model", {"psnr_db": image.model_db, "ssim": image.model_ssim}))
        rows.append(Row(image.name, "bicubic", {"psnr_db": image.bicubic_db, "ssim": image.bicubic_ssim}))
    return Measurement(name, f"super-resolution x{scale}, luma", (*rows, *_means(rows)))


def _of_pictures(name: str, task: str, scores: list[PictureScore]) -> Measurement:
    rows = []
    for score in scores:
        values = {key: value for key, value in asdict(score).items() if isinstance(value, float)}
        rows.append(Row(score.photograph, score.method, values))
    return Measurement(name, task, (*rows, *_means(rows)))


def _of_generator(name: str, module: nn.Module, descriptor: Descriptor) -> Measurement:
    drawn = _drawn_size(module, descriptor)
    data = "digits" if (descriptor.out_channels, drawn) == (1, SIZE) else f"textures-{drawn}"
    if data not in SAMPLES or (data != "digits" and descriptor.out_channels != 3):
        raise ModelError(
            f"{name} draws {descriptor.out_channels} channels of {drawn} pixels, for which there is no data"
        )
    compared = compare_generator(module, data, descriptor.value_range)
    subjects = {"model": f"{SAMPLES[data]} drawn images", "real": "training images", "noise": "uniform noise"}
    rows = [Row(subjects[of], of, scores) for of, scores in compared.items()]
    if isinstance(module, VAE):
        images = load_digits().held_out.images
        with torch.inference_mode():
            error = (module.reconstruct(images) - images).square().mean()
        rows.append(Row("held-out digits", "reconstruction", {"psnr_db": -10.0 * torch.log10(error).item()}))
    return Measurement(name, f"drawing {data}, against held-out images", tuple(rows))


def _of_classifier(name: str, module: Classifier) -> Measurement:
    if module.fc3.out_features != 10 or module.conv1.in_channels != 1:
        raise ModelError(f"{name} is no classifier of ten kinds of gray digits, for which alone there is data")
    row = Row("held-out digits", "model", {"accuracy": accuracy(module, load_digits())})
    return Measurement(name, "classification", (row,))


def _drawn_size(module: nn.Module, descriptor: Descriptor) -> int:
    inputs = [torch.zeros(1, *shape) for shape in descriptor.inputs.values()]
    with torch.inference_mode():
        drawn: torch.Tensor = module(*inputs)
    return drawn.shape[-1]


def _means(rows: list[Row]) -> list[Row]:
    """Averages each method over the subjects."""
    averages = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [row.values for row in rows if row.method == method]
        averages.append(Row(MEAN, method, {key: sum(values[key] for values in own) / len(own) for key in own[0]}))
    return averages
