"""Measures an autoencoder on held-out photographs: PSNR and SSIM at the rate of the whole file, beside JPEG."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tilefuse.export.generators.autoencoder import REDUCTION, Autoencoder
from tilefuse.export.recipes.photographs import MEASURED
from tilefuse.export.recipes.restoration_quality import PictureScore, photographs, run_aligned, score
from tilefuse.latent_file import LARGEST, LatentHeader, encode_latents


def measure_compression(module: Autoencoder, names: tuple[str, ...] = MEASURED) -> list[PictureScore]:
    """Scores the autoencoder, and JPEG at the best quality whose file is no larger."""
    scores = []
    for name, clean in photographs(names):
        coded: list[int] = []

        def round_trip(images: Tensor, coded: list[int] = coded, size: torch.Size = clean.shape) -> Tensor:
            latents = module.encoder(images).round().clamp(-LARGEST, LARGEST)
            rows, columns = -(-size[1] // REDUCTION), -(-size[2] // REDUCTION)
            latents = latents[:, :, :rows, :columns]
            header = LatentHeader(size[2], size[1], size[0], 8, REDUCTION, latents.shape[1], bytes(32))
            coded.append(len(encode_latents(header, latents[0].numpy().astype(np.int8))))
            decoded: Tensor = module.decoder(latents)
            return decoded

        decoded = run_aligned(round_trip, clean[None])[0]
        pixels = clean.shape[1] * clean.shape[2]
        jpeg, jpeg_bytes = _jpeg(clean, coded[0])
        scores.append(score(name, "model", decoded, clean, bits_per_pixel=8 * coded[0] / pixels))
        scores.append(score(name, "JPEG", jpeg, clean, bits_per_pixel=8 * jpeg_bytes / pixels))
    return scores


def _jpeg(image: Tensor, limit: int) -> tuple[Tensor, int]:
    """Returns the image as JPEG at the best quality of at most `limit` bytes (the worst, if none is), and its bytes."""
    picture = Image.fromarray(image.mul(255.0).round().byte().permute(1, 2, 0).numpy())
    low, high = 1, 95
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(_jpeg_bytes(picture, middle)) <= limit else (low, middle - 1)
    data = _jpeg_bytes(picture, low)
    decoded = torch.from_numpy(np.array(Image.open(io.BytesIO(data))))
    return decoded.permute(2, 0, 1).float().div(255.0), len(data)


def _jpeg_bytes(picture: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()
