"""torch tensors as images: every dtype comes back as itself, and what holds no image is named in torch's own order."""

from __future__ import annotations

import pytest
import torch

from tilefuse.errors import ImageError
from tilefuse.images import Picture
from tilefuse.masks import mask_of
from tilefuse.tensor_images import run_tensor


def same(picture: Picture) -> Picture:
    return picture


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 1, 4, 5), (4, 1, 1)])
def test_tensors_come_back_the_same(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    top = 1 if dtype.is_floating_point else torch.iinfo(dtype).max
    image = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * top).to(dtype)
    back = run_tensor(image, same)
    assert back.dtype == dtype
    assert torch.equal(back.double(), image.float().double())


def test_16_bit_tensors_are_16_bit_pictures() -> None:
    seen = []
    run_tensor(torch.full((1, 2, 2), 40000, dtype=torch.uint16), lambda picture: seen.append(picture) or picture)
    assert seen[0].pixels.dtype.name == "uint16"


def test_a_pending_negation_is_done() -> None:
    image = torch.rand(3, 4, 5)
    assert torch.equal(run_tensor(torch._neg_view(image), same), -image)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(5, 6, 3), r"movedim\(image, -1, -3\)"),
        (torch.zeros(2, 9, 6, 3), r"movedim\(image, -1, -3\)"),
        (torch.zeros(5, 6, 6), r"shape \[5, 6, 6\].*C of 1 to 4, uint8, uint16"),
        (torch.zeros(3, 6, 6, dtype=torch.int8), "torch.int8"),
        (torch.zeros(3, 0, 6), "at least one pixel"),
        (torch.zeros(0, 3, 6, 6), "at least one pixel"),
        (torch.zeros(3, 6, 6, device="meta"), "meta"),
        (torch.zeros(3, 6, 6).to_sparse(), "sparse"),
    ],
)
def test_what_holds_no_image_is_named(image: torch.Tensor, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        run_tensor(image, same)


def test_masks_without_data_are_named() -> None:
    for mask in (torch.zeros(6, 6, device="meta"), torch.zeros(6, 6).to_sparse()):
        with pytest.raises(ImageError, match="dense"):
            mask_of(mask)
