"""One strip of pictures for every bundled model: what goes in, what comes out, and what to hold it against."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import tilefuse
from tilefuse.api import Engine
from tilefuse.compression import compress_file, decompress_file, load_codec
from tilefuse.export.recipes.corruption import NOISE_LEVEL, square_holes
from tilefuse.export.recipes.digits import load_digits
from tilefuse.export.recipes.photographs import held_out_photograph
from tilefuse.export.recipes.stylisation import style_picture
from tilefuse.export.recipes.textures import load_textures
from tilefuse.generation import contact_sheet
from tilefuse.images import picture_from_array
from tilefuse.jobs import MASKED_CHANNELS

Pixels = NDArray[np.uint8]

# Width and height of a panel, and the part of a photograph that upscalers are shown on at twice its size.
PANEL_PX = (312, 144)
DETAIL = (160, 84, 316, 156)
SEED = 3


@dataclass(frozen=True)
class Row:
    """A model's name and its panels by caption, left to right."""

    name: str
    panels: Mapping[str, Image.Image]


def rows_of(name: str) -> Iterator[Row]:
    """Make the rows of a bundled model, by what its network takes and gives."""
    engine = tilefuse.load(name)
    graph = engine.model.graph
    if graph is not None and graph.inputs[0].name == "latent":
        yield _generator(name, engine)
        if engine.model.details["architecture"] == "VAE":
            yield _reconstruction(name, engine)
    elif engine.model.footprint is None:
        yield _classifier(name, engine)
    elif engine.scale > 1:
        yield _upscaler(name, engine)
    elif engine.model.image_channels == MASKED_CHANNELS:
        yield _filler(name, engine)
    elif engine.model.details["architecture"] == "Autoencoder":
        yield _codec(name)
    elif name.startswith("style-"):
        yield _style(name, engine)
    else:
        yield _denoiser(name, engine)


def _photograph(name: str, left: int, top: int) -> Pixels:
    width, height = PANEL_PX
    return np.ascontiguousarray(held_out_photograph(name)[top : top + height, left : left + width])


def _upscaler(name: str, engine: Engine) -> Row:
    original = Image.fromarray(held_out_photograph("astronaut.png"))
    factor = int(engine.scale)
    original = original.crop((0, 0, original.width // factor * factor, original.height // factor * factor))
    small = original.resize((original.width // factor, original.height // factor), Image.Resampling.BICUBIC)
    bicubic = small.resize(original.size, Image.Resampling.BICUBIC)
    panels = {f"reduced by {factor}, bicubic": bicubic, f"x{factor}": engine(small), "original": original}
    return Row(
        name, {caption: image.resize(PANEL_PX, Image.Resampling.NEAREST, DETAIL) for caption, image in panels.items()}
    )


def _denoiser(name: str, engine: Engine) -> Row:
    original = _photograph("chelsea.png", 60, 60)
    noise = np.random.default_rng(SEED).normal(0, NOISE_LEVEL * 255, original.shape)
    noisy = np.rint(original + noise).clip(0, 255).astype(np.uint8)
    return Row(name, _images({"noisy, 25 of 255": noisy, "restored": engine(noisy), "original": original}))


def _filler(name: str, engine: Engine) -> Row:
    original = _photograph("chelsea.png", 60, 60)
    mask = square_holes(*original.shape[:2], np.random.default_rng(SEED))
    holed = np.where(mask[..., None], 0, original).astype(np.uint8)
    filled = engine(holed, mask=mask)
    return Row(name, _images({"a quarter cut out": holed, "filled": filled, "original": original}))


def _style(name: str, engine: Engine) -> Row:
    photograph = _photograph("astronaut.png", 90, 30)
    style = (style_picture(name.removeprefix("style-"))[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    return Row(name, _images({"photograph": photograph, "drawn": engine(photograph), "style": style[: PANEL_PX[1]]}))


def _codec(name: str) -> Row:
    original = _photograph("coffee.png", 216, 180)
    codec = load_codec(name)
    with TemporaryDirectory() as folder:
        source, packed, result = (Path(folder) / file for file in ("in.png", "packed.tfz", "out.png"))
        Image.fromarray(original).save(source)
        done = compress_file(codec, source, packed)
        decompress_file(codec, packed, result)
        decoded = np.asarray(Image.open(result))
    caption = f"{done.file_bytes} bytes, {done.bits_per_pixel:.2f} bit a pixel, {done.psnr_db:.1f} dB"
    return Row(name, _images({f"{original.nbytes} bytes": original, caption: decoded, "original": original}))


def _generator(name: str, engine: Engine) -> Row:
    size = engine.generate(1).shape[1]
    columns = PANEL_PX[0] // (size + 2)
    count = columns * max(1, PANEL_PX[1] // (size + 2))
    drawn = engine.generate(count, seed=SEED)
    latents = engine.model.graph.inputs[0].shape[1]
    noise = torch.randn(count, latents, generator=torch.Generator().manual_seed(SEED)).numpy()
    gray = Image.fromarray((noise * 40 + 128).clip(0, 255).astype(np.uint8)).resize(PANEL_PX, Image.Resampling.NEAREST)
    caption = f"{count} latents of {latents}" + (", and labels" if len(engine.model.graph.inputs) > 1 else "")
    return Row(name, {caption: gray, "drawn": _grid(drawn, columns), "real": _grid(_real(drawn, count), columns)})


def _real(like: Pixels, count: int) -> Pixels:
    """Take real images of the kind and size of what was drawn: digits, or textures."""
    if like.shape[3] == 1:
        return _digits(count)[0]
    crops = load_textures(like.shape[1], held_out=True).batch(np.random.default_rng(SEED), count)
    return (crops.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)


def _digits(count: int) -> tuple[Pixels, list[int]]:
    held_out = load_digits().held_out
    pixels = (held_out.images[:count].permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    return pixels, held_out.labels[:count].tolist()


def _reconstruction(name: str, engine: Engine) -> Row:
    columns = PANEL_PX[0] // 30
    real, _ = _digits(columns * 4)
    again = engine.reconstruct([picture_from_array(digit) for digit in real])
    between = np.concatenate([engine.interpolate(2 * i, 2 * i + 1, columns) for i in range(4)])
    panels = {"digits": real, "encoded and drawn again": again, "between two latents": between}
    return Row(f"{name}: encoder", {caption: _grid(images, columns) for caption, images in panels.items()})


def _classifier(name: str, engine: Engine) -> Row:
    columns = PANEL_PX[0] // 30
    real, labels = _digits(columns * 4)
    found = [said.label for said in engine.classify([picture_from_array(digit) for digit in real])]
    wrong = sum(a != b for a, b in zip(found, labels, strict=True))
    panels = {
        "digits": real,
        f"taken for, {wrong} of {len(labels)} wrong": _written(found, labels),
        "labels": _written(labels, labels),
    }
    return Row(name, {caption: _grid(images, columns) for caption, images in panels.items()})


def _written(numbers: list[int], right: list[int]) -> Pixels:
    """Write numbers on tiles of the digits' size, red where they are not right."""
    tiles = []
    for number, expected in zip(numbers, right, strict=True):
        tile = Image.new("RGB", (28, 28), "white")
        colour = "black" if number == expected else "red"
        ImageDraw.Draw(tile).text((14, 14), str(number), fill=colour, font_size=18, anchor="mm")
        tiles.append(np.asarray(tile))
    return np.stack(tiles)


def _grid(images: Pixels, columns: int) -> Image.Image:
    return Image.fromarray(np.squeeze(contact_sheet(images, columns=columns)))


def _images(panels: Mapping[str, Pixels]) -> dict[str, Image.Image]:
    return {caption: Image.fromarray(pixels) for caption, pixels in panels.items()}
