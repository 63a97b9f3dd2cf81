"""PSNR and SSIM against scikit-image's and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.pictures import noise
from tilefuse.export.recipes.similarity import LUMA, psnr, ssim


def pair(deviation: float) -> tuple[torch.Tensor, torch.Tensor]:
    first = torch.from_numpy(noise((3, 40, 53), "float32"))
    change = torch.from_numpy(np.random.default_rng(9).normal(0, deviation, first.shape).astype(np.float32))
    return first, first + change


@pytest.mark.parametrize("deviation", [0.01, 0.1, 0.5])
def test_ssim_is_that_of_scikit_image(deviation: float) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    luma = [np.einsum("chw,c->hw", side.double().numpy(), np.array(LUMA)) for side in pair(deviation)]
    expected = metrics.structural_similarity(
        *luma, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(*pair(deviation)) == pytest.approx(expected, abs=1e-6)


def test_like_images_are_alike() -> None:
    image = pair(0.1)[0]
    assert ssim(image, image) == pytest.approx(1.0)
    assert psnr(image, image) == math.inf


def test_psnr_by_hand_and_where_it_is_asked() -> None:
    reference = torch.zeros(3, 4, 4)
    image = reference.clone()
    image[:, 1, 2] = 0.5
    where = torch.zeros(4, 4, dtype=torch.bool)
    where[1, 2] = True
    assert psnr(image, reference, where) == pytest.approx(10 * math.log10(4))
    assert psnr(image, reference) == pytest.approx(10 * math.log10(64))
