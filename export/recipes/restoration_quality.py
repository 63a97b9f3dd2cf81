"""Measures restoration on held-out photographs, beside ways that need no network."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn

from tilefuse.export.recipes.corruption import add_noise, cut_holes, square_holes
from tilefuse.export.recipes.photographs import MEASURED, held_out_photograph
from tilefuse.export.recipes.similarity import psnr, ssim

ALIGNMENT_PX = 32
MEDIANS_PX = (3, 5)


@dataclass(frozen=True)
class PictureScore:
    """PSNR in dB and SSIM of one photograph by one method; `bits_per_pixel` where the method compresses."""

    photograph: str
    method: str
    psnr_db: float
    ssim: float
    bits_per_pixel: float | None = None


def measure_denoising(module: nn.Module, names: tuple[str, ...] = MEASURED) -> list[PictureScore]:
    """Scores `module`, median filters and the noisy input: noise of deviation 25/255, rounded to 8 bits."""
    scores = []
    for name, clean in photographs(names):
        noisy = rounded(add_noise(clean[None], np.random.default_rng(25)))
        results = {"model": run_aligned(module, noisy)[0], "input": noisy[0]}
        results |= {f"median {edge}x{edge}": _median(noisy[0], edge) for edge in MEDIANS_PX}
        scores += [score(name, method, result, clean) for method, result in results.items()]
    return scores


def measure_inpainting(module: nn.Module, names: tuple[str, ...] = MEASURED) -> list[PictureScore]:
    """Scores `module`, mean fill and pyramid interpolation on a quarter cut out in squares.

    PSNR is of the holes alone, SSIM of the whole picture.
    """
    scores = []
    for name, clean in photographs(names):
        holes = torch.from_numpy(square_holes(clean.shape[1], clean.shape[2], np.random.default_rng(25)))
        mask = holes[None, None].float()
        fills = {
            "model": run_aligned(module, cut_holes(clean[None], mask))[0],
            "mean fill": clean[:, ~holes].mean(1)[:, None, None].expand_as(clean),
            "interpolation": interpolated(clean, 1.0 - mask[0]),
        }
        for method, fill in fills.items():
            scores.append(score(name, method, torch.where(holes, fill, clean), clean, holes))
    return scores


def means(scores: list[PictureScore]) -> Mapping[str, Mapping[str, float]]:
    """Averages the scores of each method over the photographs."""
    averages = {}
    for method in dict.fromkeys(score.method for score in scores):
        own = [score for score in scores if score.method == method]
        averages[method] = {
            "psnr_db": sum(score.psnr_db for score in own) / len(own),
            "ssim": sum(score.ssim for score in own) / len(own),
        }
        rates = [score.bits_per_pixel for score in own if score.bits_per_pixel is not None]
        if rates:
            averages[method]["bits_per_pixel"] = sum(rates) / len(rates)
    return averages


def rounded(images: Tensor) -> Tensor:
    """Rounds images in 0..1 to 8 bits."""
    return images.clamp(0.0, 1.0).mul(255.0).round().div(255.0)


def run_aligned(module: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Runs images [N, C, H, W] of any size, reflected at their right and lower ends to a multiple of 32 pixels."""
    height, width = images.shape[2:]
    padded = F.pad(images, (0, -width % ALIGNMENT_PX, 0, -height % ALIGNMENT_PX), mode="reflect")
    with torch.inference_mode():
        return module(padded)[:, :, :height, :width]


def photographs(names: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """Yields the name without its ending and the pixels [3, H, W] in 0..1 of held-out photographs."""
    for name in names:
        pixels = torch.tensor(held_out_photograph(name))
        yield name.split(".")[0], pixels.permute(2, 0, 1).float().div(255.0)


def score(
    name: str,
    method: str,
    result: Tensor,
    clean: Tensor,
    where: Tensor | None = None,
    *,
    bits_per_pixel: float | None = None,
) -> PictureScore:
    """Scores a result [3, H, W], rounded to 8 bits; PSNR over the pixels `where` [H, W] is true, or all."""
    result = rounded(result)
    return PictureScore(name, method, psnr(result, clean, where), ssim(result, clean), bits_per_pixel)


def _median(image: Tensor, edge: int) -> Tensor:
    pixels = image.mul(255.0).round().byte().permute(1, 2, 0).numpy()
    filtered = np.array(Image.fromarray(pixels).filter(ImageFilter.MedianFilter(edge)))
    return torch.from_numpy(filtered).permute(2, 0, 1).float().div(255.0)


def interpolated(image: Tensor, known: Tensor) -> Tensor:
    """Fills where `known` [1, H, W] is 0 from the nearest level of a pyramid of averages that has known pixels.

    Source: Gortler et al., "The Lumigraph", SIGGRAPH 1996 (push-pull).
    """
    height, width = image.shape[1:]
    if bool(known.all()) or min(height, width) < 2:
        return image
    weight = F.avg_pool2d(known[None], 2, ceil_mode=True)[0]
    lower = F.avg_pool2d((image * known)[None], 2, ceil_mode=True)[0] / weight.clamp_min(1e-6)
    lower = interpolated(lower, (weight > 0).float())
    larger = F.interpolate(lower[None], (height, width), mode="bilinear", align_corners=False)[0]
    return torch.where(known > 0, image, larger)
