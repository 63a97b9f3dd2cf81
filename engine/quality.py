"""How alike two images are: largest difference, PSNR and SSIM."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

_SSIM_WINDOW, _SSIM_SIGMA = 11, 1.5


def max_levels(image: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the largest absolute difference, in the images' own units (levels of an 8-bit image)."""
    return float(np.abs(image.astype(np.float64) - reference.astype(np.float64)).max(initial=0))


def psnr(image: NDArray[Any], reference: NDArray[Any], peak: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels; infinite for equal images."""
    error = np.square(image.astype(np.float64) - reference.astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(peak**2 / float(error))


def ssim(image: NDArray[Any], reference: NDArray[Any], peak: float = 255.0) -> float:
    """Return the mean structural similarity of images [H, W] or [H, W, C], averaged over channels; 1 for equal images.

    A Gaussian window of 11 pixels (sigma 1.5), or the largest odd one that fits, where it lies inside the image.

    Source: Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
    Similarity", IEEE TIP 13(4), 2004.
    """
    x, y = (_planes(array) for array in (image, reference))
    edge = min(_SSIM_WINDOW, *((size - 1) // 2 * 2 + 1 for size in x.shape[2:]))
    distance = torch.arange(edge, dtype=torch.float64) - edge // 2
    line = torch.exp(-(distance**2) / (2 * _SSIM_SIGMA**2))
    line /= line.sum()

    def blurred(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(values, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((alike / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))).mean())


def _planes(array: NDArray[Any]) -> torch.Tensor:
    """Lay [H, W] or [H, W, C] out as [C, 1, H, W]."""
    deep = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(np.ascontiguousarray(deep.transpose(2, 0, 1), dtype=np.float64))[:, None]
