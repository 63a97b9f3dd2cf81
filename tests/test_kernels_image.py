"""Pixels in and out: integers and floats of any layout, rounded to even, clipped, in packed words."""

from __future__ import annotations

import pytest
import torch

from tests.kernel_cases import SHAPES, awkward, image
from tilefuse.errors import BackendError
from tilefuse.kernels.image_load import image_load, image_load_ref
from tilefuse.kernels.image_store import empty_pixels, image_store, image_store_ref


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "full"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_integers_survive_the_way_in_and_out(shape: tuple[int, ...], dtype: torch.dtype, full: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, full + 1, shape, generator=generator, dtype=torch.int32).to(dtype)
    planes = pixels.to(torch.int32).permute(0, 3, 1, 2).contiguous().to(dtype).permute(0, 2, 3, 1)
    for given in (pixels, planes):
        loaded = image_load(given, 1 / full)
        assert torch.equal(loaded, image_load_ref(given, 1 / full))
        assert torch.equal(image_store(loaded, dtype).int(), pixels.int())
    if dtype == torch.uint8:
        assert torch.equal(image_store(image_load(pixels, 1 / full, torch.float16), dtype).int(), pixels.int())


def test_floats_of_any_layout_are_loaded_into_a_slice() -> None:
    x = image(2, 3, 17, 3)
    for given in (x, *awkward(x)):
        buffer = torch.full((2, 3, 17, 8), torch.nan, dtype=torch.float16)
        image_load(given, out=buffer[..., 2:5])
        assert torch.equal(buffer[..., 2:5], x.half())
        assert buffer[..., 5:].isnan().all()


def test_what_half_precision_can_not_hold_becomes_no_number() -> None:
    x = torch.tensor([65504.0, -65504.0, 65519.0, 65521.0, -70000.0, torch.inf]).view(1, 1, 6, 1)
    made = image_load(x, dtype=torch.float16)
    assert made.flatten()[:3].tolist() == [65504.0, -65504.0, 65504.0]
    assert made.flatten()[3:].isnan().all()
    assert torch.equal(image_load_ref(x, dtype=torch.float16).isnan(), made.isnan())
    assert torch.equal(image_load(x), x)


def test_halves_round_to_even_and_excess_is_clipped() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, 253.5, 254.5, -3.0, 300.0, torch.inf]).view(1, 1, 8, 1) / 255
    assert image_store(x).flatten().tolist() == [0, 2, 2, 254, 254, 0, 255, 255]
    assert torch.equal(image_store(x), image_store_ref(x))
    wide = torch.tensor([-1.0, -0.5, 0.0, 0.25, 1.0, 7.0]).view(1, 1, 6, 1)
    assert image_store(wide, low=-1.0, high=1.0).flatten().tolist() == [0, 64, 128, 159, 255, 255]
    assert torch.equal(image_store(wide, low=-1.0, high=1.0), image_store_ref(wide, low=-1.0, high=1.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_only_the_words_of_the_image_are_written(dtype: torch.dtype) -> None:
    for given in awkward(image(1, 3, 7, 3)):
        memory = torch.full((40,), -1, dtype=torch.int32)
        out = memory[4:].view(dtype).as_strided((1, 3, 7, 3), (63, 21, 3, 1), memory[4:].view(dtype).storage_offset())
        image_store(given, dtype, out=out)
        assert torch.equal(out.int(), image_store_ref(given, dtype).int())
        words = -(-63 * dtype.itemsize // 4)
        assert (memory[:4] == -1).all()
        assert (memory[4 + words :] == -1).all()


def test_values_that_are_not_finite_are_flagged() -> None:
    x, flag = image(1, 5, 5, 3), torch.zeros(1, dtype=torch.int32)
    image_store(x, flag=flag)
    assert flag.item() == 0
    for value in (torch.nan, torch.inf, -torch.inf):
        flag.zero_()
        x[0, 2, 3, 1] = value
        image_store(x, flag=flag)
        assert flag.item() == 1


def test_bad_input_is_named() -> None:
    x = image(1, 2, 2, 3)
    with pytest.raises(BackendError, match="image_load: x is float64; uint8, uint16, float16, bfloat16, float32"):
        image_load(x.double())
    with pytest.raises(BackendError, match="int8 pixels; uint8 and uint16 are accepted"):
        image_store(x, torch.int8)
    with pytest.raises(BackendError, match=r"a dense .* with room for whole words"):
        image_store(x[..., :1], out=torch.empty(2, dtype=torch.uint8).as_strided((1, 2, 2, 1), (0, 0, 0, 1)))
    for limits in ((1.0, 1.0), (0.0, torch.inf), (torch.nan, 1.0)):
        with pytest.raises(BackendError, match=r"low is .* two finite numbers that differ are accepted"):
            image_store(x, torch.uint8, *limits)
    with pytest.raises(BackendError, match=r"flag has the shape \[0\]; \[1\] is accepted"):
        image_store(x, flag=torch.zeros(0, dtype=torch.int32))
    with pytest.raises(BackendError, match="image_store: x is float64"):
        image_store(x.double())
    assert image_store(x[:0]).shape == (0, 2, 2, 3)
    assert image_load(x[:0]).shape == (0, 2, 2, 3)
    assert empty_pixels((1, 1, 1, 3), torch.uint8, x.device).untyped_storage().nbytes() == 4
    with pytest.raises(BackendError, match="out has the shape"):
        image_load(x, out=torch.empty(1))
