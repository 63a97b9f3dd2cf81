"""Padding and cropping by side in every mode."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.kernel_cases import check_launcher, check_refusals, image
from tilefuse.errors import BackendError
from tilefuse.kernels.pad import MODES, pad, pad_ref

SIDES = ((1, 0, 1, 1), (0, 2, 3, 1), (-1, 0, 0, -1), (-1, 2, 2, -2), (0, 0, 0, 0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sides", SIDES)
def test_every_mode_pads_and_crops(mode: str, sides: tuple[int, int, int, int]) -> None:
    launch, reference = (partial(f, sides=sides, mode=mode, value=0.3) for f in (pad, pad_ref))
    check_launcher(launch, reference, image(2, 5, 4, 3))


@pytest.mark.parametrize(
    ("mode", "shape"), [("constant", (1, 1, 1, 1)), ("replicate", (1, 1, 63, 2)), ("circular", (1, 1, 1, 5))]
)
def test_small_images_pad(mode: str, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float16):
        x = image(*shape, dtype=dtype)
        assert torch.equal(pad(x, (1, 1, 1, 1), mode), pad_ref(x, (1, 1, 1, 1), mode))


def test_bad_input_is_named() -> None:
    check_refusals("pad", partial(pad, sides=(1, 1, 1, 1)), image(1, 2, 2, 4))
    with pytest.raises(BackendError, match=r"\[2, 0, 0, 0\] in mode reflect; x is 2x3, at most 1, 2 a side"):
        pad(image(1, 2, 3, 1), (2, 0, 0, 0), "reflect")
    with pytest.raises(BackendError, match="constant, reflect, replicate, circular are accepted"):
        pad(image(1, 2, 3, 1), (2, 0, 0, 0), "mirror")
    for mode in ("reflect", "replicate", "circular"):
        with pytest.raises(BackendError, match="x is 0x3"):
            pad(image(1, 2, 3, 1)[:, :0], (1, 1, 1, 1), mode)
    with pytest.raises(BackendError, match="leave nothing of x"):
        pad(image(1, 2, 3, 1), (-1, 0, -1, 0))
