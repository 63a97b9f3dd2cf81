"""How alike two images are: PSNR of the colours, and SSIM of the luma."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
SSIM_WINDOW_PX = 11
SSIM_DEVIATION_PX = 1.5


def psnr(image: Tensor, reference: Tensor, where: Tensor | None = None) -> float:
    """Returns the PSNR in dB of two images [3, H, W] in 0..1, over all pixels or those `where` [H, W] is true."""
    difference = (image - reference).double()
    error = (difference if where is None else difference[:, where]).square().mean().item()
    return math.inf if error == 0 else -10.0 * math.log10(error)


def ssim(image: Tensor, reference: Tensor) -> float:
    """Returns the mean structural similarity of the luma of two images [3, H, W] in 0..1.

    H and W are 11 at least. Local means and variances are those of a Gaussian window of 11 pixels; windows past the
    border are left out.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", TIP 2004.
    """
    weights = torch.tensor(LUMA, dtype=torch.float64)
    x, y = (torch.einsum("chw,c->hw", side.double(), weights)[None, None] for side in (image, reference))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x * mean_x, _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    first, second = 0.01**2, 0.03**2
    above = (2 * mean_x * mean_y + first) * (2 * covariance + second)
    below = (mean_x * mean_x + mean_y * mean_y + first) * (variance_x + variance_y + second)
    return (above / below).mean().item()


def _blur(values: Tensor) -> Tensor:
    offsets = torch.arange(SSIM_WINDOW_PX, dtype=torch.float64) - SSIM_WINDOW_PX // 2
    window = torch.exp(-0.5 * (offsets / SSIM_DEVIATION_PX).square())
    window = window / window.sum()
    return F.conv2d(F.conv2d(values, window[None, None, None]), window[None, None, :, None])
