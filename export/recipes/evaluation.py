"""Measures an upscaler: PSNR and SSIM of the luma on held-out photographs, beside Pillow's bicubic filter."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tilefuse.export.recipes.dataset import shrink
from tilefuse.export.recipes.photographs import MEASURED, held_out_photograph
from tilefuse.export.recipes.similarity import ssim


@dataclass(frozen=True)
class ImageScore:
    """PSNR of the luma in dB and its SSIM, of the model and of Pillow's bicubic filter, on one photograph."""

    name: str
    model_db: float
    bicubic_db: float
    model_ssim: float
    bicubic_ssim: float


@dataclass(frozen=True)
class Evaluation:
    """The scores on every photograph."""

    images: tuple[ImageScore, ...]

    @property
    def model_db(self) -> float:
        """The mean PSNR of the model."""
        return sum(image.model_db for image in self.images) / len(self.images)

    @property
    def bicubic_db(self) -> float:
        """The mean PSNR of the bicubic filter."""
        return sum(image.bicubic_db for image in self.images) / len(self.images)

    @property
    def gain_db(self) -> float:
        """How far the model is above the bicubic filter, in dB."""
        return self.model_db - self.bicubic_db

    @property
    def ssim_gain(self) -> float:
        """How far the model's mean SSIM is above that of the bicubic filter."""
        return sum(image.model_ssim - image.bicubic_ssim for image in self.images) / len(self.images)


def evaluate(module: nn.Module, scale: int, names: tuple[str, ...] = MEASURED) -> Evaluation:
    """Measures `module` ([1, 3, H, W] in 0..1 to [1, 3, scale*H, scale*W]) on the held-out photographs `names`.

    The photograph is cropped to a multiple of `scale` and reduced by Pillow's bicubic filter; results are rounded to
    8 bits; PSNR is of the BT.601 luma (16..235) with a border of `scale` pixels left out, SSIM as in `similarity`.
    Raises ModelError without scikit-image.
    """
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    scores = []
    for name in names:
        small, large = shrink(held_out_photograph(name), scale)
        batch = torch.tensor(small, device=device).permute(2, 0, 1)[None].float() / 255.0
        with torch.inference_mode():
            result = module(batch)[0].float().clamp(0, 1).mul(255).round().permute(1, 2, 0)
        enlarged = Image.fromarray(small).resize((large.shape[1], large.shape[0]), Image.Resampling.BICUBIC)
        candidates = result.cpu().numpy().astype(np.uint8), np.asarray(enlarged)
        model_db, bicubic_db = (luma_psnr(image, large, scale) for image in candidates)
        model_ssim, bicubic_ssim = (ssim(*(_unit(side) for side in (image, large))) for image in candidates)
        scores.append(ImageScore(name.split(".")[0], model_db, bicubic_db, model_ssim, bicubic_ssim))
    return Evaluation(tuple(scores))


def luma_psnr(image: NDArray[np.uint8], reference: NDArray[np.uint8], border: int) -> float:
    """Returns the PSNR in dB of the BT.601 luma of two uint8 [H, W, 3] images, leaving `border` pixels out."""
    difference = (_luma(image) - _luma(reference))[border:-border, border:-border]
    error = float(np.mean(np.square(difference)))
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def _unit(image: NDArray[np.uint8]) -> Tensor:
    return torch.tensor(image).permute(2, 0, 1).float() / 255.0


def _luma(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    weights = np.array([65.481, 128.553, 24.966]) / 255.0
    return np.asarray(16.0 + image.astype(np.float64) @ weights)
