"""Instance, group and pixel norm: statistics merged from chunks, independent of the batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.kernel_cases import SHAPES, check_launcher, check_refusals, image
from tilefuse.errors import BackendError
from tilefuse.kernels.norm import norm, norm_ref, norm_statistics, norm_statistics_ref, pick_config
from tilefuse.kernels.pixel_norm import pixel_norm, pixel_norm_ref

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_groups(groups: int) -> None:
    weight, bias = image(4, seed=1), image(4, seed=2)
    launch, reference = (partial(f, groups=groups, weight=weight, bias=bias) for f in (norm, norm_ref))
    check_launcher(launch, reference, image(2, 3, 17, 4), max_abs=2e-6)


def test_many_chunks_far_from_zero_keep_their_variance() -> None:
    """Averages of 1000 with a deviation of 1, over three chunks: squares minus a squared mean would lose all digits."""
    x = image(1, 47, 63, 2) + 1000
    assert pick_config(2).chunks(47, 63) == 3
    mean, scale, shift = norm_statistics(x, 0, eps=0.0)
    exact = x.double()
    assert (mean.view(2) - exact.mean((0, 1, 2))).abs().max() < 1e-3
    assert (1 / scale.view(2).double() - exact.std((0, 1, 2), correction=0)).abs().max() < 1e-4
    assert (shift + mean * scale).abs().max() < 1e-2


@pytest.mark.parametrize(("height", "width", "chunks"), [(47, 63, 3), (190, 180, 34)])
def test_chunks_with_other_averages_spread_the_variance(height: int, width: int, chunks: int) -> None:
    """A ramp: most of the variance lies between the chunks, and between those merged at a time, not in them."""
    assert pick_config(2).chunks(height, width) == chunks
    x = image(2, height, width, 2) + torch.linspace(0, 46, height).view(1, -1, 1, 1)
    mean, scale, _ = norm_statistics(x, 0, eps=0.0)
    variance, average = torch.var_mean(x.double(), (1, 2), correction=0)
    assert (mean.view(2, 2) - average).abs().max() < 1e-4
    assert (scale.view(2, 2).double().pow(-2) / variance - 1).abs().max() < 1e-5


def test_the_parts_of_a_prologue_are_the_norm() -> None:
    x, weight, bias = image(2, 5, 7, 3), image(3, seed=1), image(3, seed=2)
    _, scale, shift = norm_statistics(x, 0, weight, bias)
    assert (x * scale + shift - norm_ref(x, 0, weight, bias)).abs().max() < 3e-6
    for made, expected in zip(norm_statistics(x, 3), norm_statistics_ref(x, 3), strict=True):
        assert (made - expected).abs().max() < 3e-6


def test_an_image_has_the_same_bits_in_any_batch() -> None:
    x, weight, bias = image(3, 41, 37, 3), torch.ones(3), torch.zeros(3)
    together = norm(x, 0, weight, bias)
    for i in range(3):
        assert torch.equal(norm(x[i : i + 1], 0, weight, bias), together[i : i + 1])


def test_half_is_summed_in_single_precision() -> None:
    x = (image(1, 33, 33, 2) + 100).half()
    made = norm(x, 0, torch.ones(2), torch.zeros(2))
    assert made.dtype == torch.float16
    assert (made.float() - norm_ref(x, 0, torch.ones(2), torch.zeros(2)).float()).abs().max() < 4e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_pixel_norm(shape: tuple[int, ...]) -> None:
    check_launcher(pixel_norm, pixel_norm_ref, image(*shape), max_abs=1e-6)


def test_bad_input_is_named() -> None:
    weight = torch.ones(4)
    check_refusals("norm", partial(norm, groups=0, weight=weight, bias=weight), image(1, 2, 2, 4))
    check_refusals("pixel_norm", pixel_norm, image(1, 2, 2, 4))
    with pytest.raises(BackendError, match="x has 4 channels; a multiple of the 3 groups"):
        norm_statistics(image(1, 2, 2, 4), 3)
    with pytest.raises(BackendError, match=r"bias has the shape \[3\]; a dense \[4\]"):
        norm(image(1, 2, 2, 4), 0, weight, torch.ones(3))
    with pytest.raises(BackendError, match="x is 0x2 with 4 channels; at least one pixel"):
        norm_statistics(image(1, 2, 2, 4)[:, :0], 0)
    with pytest.raises(BackendError, match="x is 2x2 with 0 channels; at least one pixel"):
        norm_statistics(image(1, 2, 2, 4)[..., :0], 0)
    with pytest.raises(BackendError, match=r"scratch has the shape \[1\]"):
        norm_statistics(image(1, 2, 2, 4), 0, scratch=torch.ones(1))
