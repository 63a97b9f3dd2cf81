"""Transparency: hidden colour never shows at an edge, and a network can't make opaque pixels see-through."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.pictures import Array, noise
from tilefuse.images.transparency import BLEED_RADIUS_PX, bleed, keep_flat, varies

RED, GREEN = np.array([255, 0, 0], np.uint8), np.array([0, 255, 0], np.uint8)


def disc(size: int = 61) -> tuple[Array, Array]:
    """Return a red disc, antialiased, on transparent green."""
    y, x = np.mgrid[:size, :size] - size // 2
    alpha = (np.clip(size / 3 - np.hypot(x, y), 0, 1) * 255).astype(np.uint8)
    return np.where(alpha[..., None] > 0, RED, GREEN), alpha


def on_white(pixels: Array, alpha: Array) -> Array:
    share = alpha[..., None] / 255
    return pixels * share + 255 * (1 - share)


@pytest.mark.parametrize("kernel", ["BILINEAR", "HAMMING", "BICUBIC", "LANCZOS"])
@pytest.mark.parametrize("scale", [0.6, 2, 3.7])
def test_a_red_disc_on_hidden_green_shows_no_green(kernel: str, scale: float) -> None:
    pixels, alpha = disc()

    def shown(colour: Array) -> Array:
        method, side = Image.Resampling[kernel], round(61 * scale)
        scaled = Image.fromarray(colour).resize((side, side), method)
        opacity = Image.fromarray(alpha).resize((side, side), method)
        return on_white(np.asarray(scaled), np.asarray(opacity))

    def greenish(image: Array) -> float:
        return float((image[..., 1] - image[..., 2]).max())

    assert greenish(shown(pixels)) > 8, "the case itself must fringe, or it proves nothing"
    assert greenish(shown(bleed(pixels, alpha))) <= 1
    assert shown(bleed(pixels, alpha))[..., 0].min() >= 254


def test_only_hidden_pixels_change_and_the_input_does_not() -> None:
    pixels, alpha = disc()
    before = pixels.copy()
    filled = bleed(pixels, alpha)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(filled[alpha > 0], before[alpha > 0])


def test_colour_reaches_the_radius_and_no_farther() -> None:
    pixels = np.zeros((1, 40, 1), np.uint8)
    pixels[0, 0] = 200
    alpha = np.zeros((1, 40), np.uint8)
    alpha[0, 0] = 255
    reached = np.nonzero(bleed(pixels, alpha)[0, :, 0])[0]
    np.testing.assert_array_equal(reached, np.arange(BLEED_RADIUS_PX + 1))


def test_neighbours_count_by_their_alpha() -> None:
    pixels = np.array([[[0.0], [9.0], [1.0]]], np.float32)
    alpha = np.array([[0.25, 0, 0.75]], np.float32)
    assert bleed(pixels, alpha)[0, 1, 0] == pytest.approx(0.75)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_tile_with_halo_equals_the_whole(dtype: str) -> None:
    generator = np.random.default_rng(3)
    pixels = noise((90, 70, 3), dtype)
    alpha = (noise((90, 70), dtype) * (generator.random((90, 70)) < 0.004)).astype(dtype)
    whole = bleed(pixels, alpha)
    assert (whole != pixels).any()
    halo = BLEED_RADIUS_PX
    window = np.s_[30 - halo : 50 + halo, 20 - halo : 45 + halo]
    tile = bleed(pixels[window], alpha[window])[halo:-halo, halo:-halo]
    np.testing.assert_array_equal(tile, whole[30:50, 20:45])


@pytest.mark.parametrize("value", [0, 255])
def test_nothing_to_fill_or_nothing_to_fill_from(value: int) -> None:
    pixels = noise((5, 6, 3), "uint8")
    np.testing.assert_array_equal(bleed(pixels, np.full((5, 6), value, np.uint8)), pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 3), (63, 17)])
@pytest.mark.parametrize("scale", [1, 2, 3, 0.5])
def test_flat_alpha_is_restored_and_edges_are_left(shape: tuple[int, int], scale: float) -> None:
    source = np.full(shape, 255, np.uint8)
    source[:, shape[1] // 2 :] = 0
    source[shape[0] // 3 : shape[0] // 2, : shape[1] // 2] = 0
    result = np.full([max(1, round(side * scale)) for side in shape], 77, np.uint8)
    keep_flat(result, source)
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            y, x = row * shape[0] // result.shape[0], column * shape[1] // result.shape[1]
            around = source[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            expected = source[y, x] if (around == source[y, x]).all() else 77
            assert result[row, column] == expected


def test_flatness_looks_at_corners_too() -> None:
    source = np.zeros((5, 5), np.uint8)
    source[0, 0] = 9
    result = np.full((5, 5), 77, np.uint8)
    keep_flat(result, source)
    assert result[1, 1] == 77
    assert (result[2:, 2:] == 0).all()


def test_varies() -> None:
    assert not varies(np.full((3, 3), 7, np.uint8))
    assert varies(np.array([[7, 7], [7, 8]], np.uint8))
