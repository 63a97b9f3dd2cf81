"""Pictures through a network and back: channels, range, rounding, alpha."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pictures import Array, noise, profile
from tilefuse.errors import BackendError, ModelError
from tilefuse.images import Picture, from_planes, picture_from_array, picture_to_array, to_planes


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("inputs", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (63, 17)])
def test_the_identity_network_changes_nothing(dtype: str, channels: int, inputs: int, size: tuple[int, int]) -> None:
    array = noise((*size, channels), dtype)
    # Colour under full transparency may change; anything visible may not.
    array[..., -1] = np.maximum(array[..., -1], np.array(1, dtype) if dtype != "float32" else 1e-3)
    picture = picture_from_array(array)
    planes = to_planes(picture, inputs)
    assert planes.dtype == np.float32
    assert planes.shape[1:] == (inputs, *size)
    assert planes.min() >= 0
    assert planes.max() <= 1
    back = picture_to_array(from_planes(planes, picture), like=array)
    np.testing.assert_allclose(back, array, rtol=0, atol=1e-7 if dtype == "float32" else 0)


def test_every_level_survives() -> None:
    for dtype, count in (("uint8", 256), ("uint16", 65536)):
        picture = picture_from_array(np.arange(count, dtype=dtype)[None])
        np.testing.assert_array_equal(from_planes(to_planes(picture, 3), picture).pixels, picture.pixels)


@pytest.mark.parametrize(
    ("channels", "inputs", "images"), [(1, 1, 1), (1, 3, 1), (3, 3, 1), (3, 1, 3), (2, 3, 2), (4, 3, 2), (4, 1, 4)]
)
def test_how_many_images_enter_the_network(channels: int, inputs: int, images: int) -> None:
    picture = picture_from_array(np.maximum(noise((4, 5, channels), "uint8"), 1))
    planes = to_planes(picture, inputs)
    assert planes.shape == (images, inputs, 4, 5)
    if channels < 3 and inputs == 3:
        np.testing.assert_array_equal(planes[:, 0], planes[:, 2])
    if inputs == 1 and channels >= 3:
        np.testing.assert_allclose(planes[:3, 0], np.moveaxis(picture.pixels, 2, 0) / 255, atol=1e-7)


def test_integers_are_clipped_and_rounded_to_the_nearest() -> None:
    picture = picture_from_array(np.zeros((1, 6), np.uint8))
    values = np.array([-3, 0.49 / 255, 0.51 / 255, 254.4 / 255, 1, 7], np.float32).reshape(1, 1, 1, 6)
    np.testing.assert_array_equal(from_planes(values, picture).pixels[0, :, 0], [0, 0, 1, 254, 255, 255])


def test_float_is_neither_clipped_nor_rounded() -> None:
    picture = picture_from_array(np.zeros((1, 3), np.float32))
    values = np.array([-3, 0.123456789, 7], np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(from_planes(values, picture).pixels[0, :, 0], values.reshape(3))


def test_gray_comes_back_as_the_mean_of_three_channels() -> None:
    picture = picture_from_array(np.zeros((1, 1), np.uint8))
    planes = np.array([30, 60, 120], np.float32).reshape(1, 3, 1, 1) / 255
    assert from_planes(planes, picture).pixels.item() == 70


def test_constant_alpha_stays_out_of_the_network_and_is_restored() -> None:
    for value in (0, 100, 255):
        array = noise((4, 5, 4), "uint8")
        array[..., 3] = value
        picture = picture_from_array(array)
        planes = to_planes(picture, 3)
        assert planes.shape[0] == 1
        result = from_planes(planes.repeat(2, axis=2).repeat(2, axis=3), picture)
        assert result.alpha is not None
        assert result.alpha.shape == (8, 10)
        assert (result.alpha == value).all()


def test_opaque_stays_opaque_when_the_network_is_a_little_off() -> None:
    array = np.zeros((12, 12, 4), np.uint8)
    array[:, :6, 3] = 255
    picture = picture_from_array(array)
    planes = to_planes(picture, 3).repeat(2, axis=2).repeat(2, axis=3) * np.float32(0.9) + np.float32(0.05)
    alpha = from_planes(planes, picture).alpha
    assert alpha is not None
    assert (alpha[:, :10] == 255).all()
    assert (alpha[:, 14:] == 0).all()
    assert (alpha[:, 10:12] == round(0.95 * 255)).all()


def test_hidden_colour_does_not_enter_the_network() -> None:
    array = np.zeros((5, 5, 4), np.uint8)
    array[..., 1] = 255
    array[2, 2] = (255, 0, 0, 255)
    assert to_planes(picture_from_array(array), 3)[0, 1].max() == 0
    assert to_planes(picture_from_array(array), 1)[1].max() == 0


def test_metadata_stays_and_a_profile_of_other_channels_goes() -> None:
    picture = Picture(np.zeros((2, 2, 1), np.uint8), icc=profile(), dpi=(300, 300), notes=("said",))
    same = from_planes(np.zeros((1, 1, 4, 4), np.float32), picture)
    assert (same.icc, same.dpi, same.notes) == (profile(), (300, 300), ("said",))
    colour = Picture(np.zeros((2, 2, 3), np.uint8), icc=profile())
    gray = from_planes(np.zeros((1, 1, 4, 4), np.float32), colour)
    assert gray.is_gray
    assert gray.icc is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_non_finite_output_is_an_error_never_an_image(bad: float, dtype: str) -> None:
    picture = picture_from_array(noise((4, 5, 3), dtype))
    planes = to_planes(picture, 3)
    planes[0, 1, 2, 3] = bad
    with pytest.raises(BackendError, match="NaN or infinite"):
        from_planes(planes, picture)


@pytest.mark.parametrize("inputs", [0, 2, 4, 12])
def test_other_networks_are_refused(inputs: int) -> None:
    with pytest.raises(ModelError, match=f"takes {inputs} input channels"):
        to_planes(picture_from_array(noise((4, 5, 3), "uint8")), inputs)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 4, 5), (3, 3, 4, 5), (3, 4, 5)])
def test_a_batch_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    planes: Array = np.zeros(shape, np.float32)
    with pytest.raises(ModelError, match="for 3 colour channels"):
        from_planes(planes, picture_from_array(noise((4, 5, 3), "uint8")))
