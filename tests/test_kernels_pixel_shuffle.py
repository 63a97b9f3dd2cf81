"""Pixel shuffle and its inverse: exact copies in both orders."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.kernel_cases import check_launcher, check_refusals, image
from tilefuse.errors import BackendError
from tilefuse.kernels.pixel_shuffle import pixel_shuffle, pixel_shuffle_ref
from tilefuse.kernels.pixel_unshuffle import pixel_unshuffle, pixel_unshuffle_ref

CASES = [((1, 1, 1, 4), 2), ((2, 3, 17, 12), 2), ((1, 2, 5, 9), 3), ((1, 3, 1, 3), 1)]


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize(("shape", "factor"), CASES)
def test_shuffling_moves_every_channel_to_its_place(shape: tuple[int, ...], factor: int, order: str) -> None:
    launch, reference = (partial(f, factor=factor, order=order) for f in (pixel_shuffle, pixel_shuffle_ref))
    check_launcher(launch, reference, image(*shape))
    check_launcher(launch, reference, image(*shape, dtype=torch.float16))


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize(("shape", "factor"), CASES)
def test_unshuffling_is_the_inverse(shape: tuple[int, ...], factor: int, order: str) -> None:
    x = image(*shape)
    launch, reference = (partial(f, factor=factor, order=order) for f in (pixel_unshuffle, pixel_unshuffle_ref))
    large = pixel_shuffle_ref(x, factor, order).contiguous()
    assert torch.equal(launch(large), x)
    check_launcher(launch, reference, large)


def test_bad_input_is_named() -> None:
    check_refusals("pixel_shuffle", partial(pixel_shuffle, factor=2), image(1, 2, 2, 4))
    check_refusals("pixel_unshuffle", partial(pixel_unshuffle, factor=2), image(1, 2, 2, 4))
    with pytest.raises(BackendError, match="6 channels by 2 in crd; a multiple of 4 is accepted"):
        pixel_shuffle(image(1, 2, 2, 6), 2)
    with pytest.raises(BackendError, match="x is 3x2; multiples of 2 are accepted"):
        pixel_unshuffle(image(1, 3, 2, 6), 2)


def test_addresses_past_two_to_the_31_are_right() -> None:
    """Two images whose second lies 2**31 elements behind the first: the memory between is never touched."""
    distance = 2**31 + 64
    memory = torch.empty(distance + 64, dtype=torch.float16)
    far = memory.as_strided((2, 1, 3, 4), (distance, 12, 4, 1))
    far.copy_(image(2, 1, 3, 4))
    assert torch.equal(pixel_shuffle(far, 2), pixel_shuffle_ref(far, 2))
    made = memory.as_strided((2, 2, 6, 1), (distance, 6, 1, 1), 32)
    pixel_shuffle(far, 2, out=made)
    assert torch.equal(made, pixel_shuffle_ref(far, 2))


def test_it_is_exported_and_traced_around() -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return pixel_shuffle(x + 1, 2) * 2

    x = image(1, 3, 5, 4)
    program = torch.export.export(Twice(), (x,))
    assert any("tilefuse" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), pixel_shuffle_ref(x + 1, 2) * 2)
