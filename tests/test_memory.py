"""Windows of arrays: conversion, reflection past the end, rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tilefuse.memory import ArrayReader, ArrayWriter
from tilefuse.tiling import Span, Window


def window(y0: int, y1: int, x0: int, x1: int) -> Window:
    return Window(Span(y0, y1, y0, y1, 0), Span(x0, x1, x0, x1, 0))


@given(height=st.integers(1, 9), width=st.integers(1, 9), extra=st.integers(0, 12), start=st.integers(0, 8))
def test_past_the_end_the_image_is_reflected(height: int, width: int, extra: int, start: int) -> None:
    start = min(start, height - 1)
    pixels = np.arange(height * width, dtype=np.float32).reshape(1, height, width, 1)
    tile = ArrayReader(pixels, 1).read(window(start, height + extra, 0, width + extra))
    mirror = lambda size, n: [abs((i + size - 1) % max(2 * size - 2, 1) - (size - 1)) for i in range(n)]  # noqa: E731
    rows, columns = mirror(height, height + extra)[start:], mirror(width, width + extra)
    assert np.array_equal(tile[0, 0].numpy(), pixels[0, :, :, 0][np.ix_(rows, columns)])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_integer_survives_the_round_trip(dtype: type) -> None:
    values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(1, 256, -1, 1)
    whole = window(0, 256, 0, values.shape[2])
    back = np.zeros_like(values)
    tile = ArrayReader(values, 1).read(whole)
    assert tile.dtype == torch.float32
    assert tile.min() == 0
    assert tile.max() == 1
    ArrayWriter(back).write(whole, tile)
    assert np.array_equal(back, values)


def test_integers_are_rounded_and_clipped_and_floats_are_not() -> None:
    core = torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 2.0]).view(1, 1, 1, 4)
    spot = window(0, 1, 0, 4)
    bytes_, floats = np.zeros((1, 1, 4, 1), np.uint8), np.zeros((1, 1, 4, 1), np.float32)
    ArrayWriter(bytes_).write(spot, core)
    ArrayWriter(floats).write(spot, core)
    assert bytes_.ravel().tolist() == [0, 0, 1, 255]
    assert np.array_equal(floats.ravel(), core.flatten().numpy())


def test_gray_goes_through_a_colour_network_and_back() -> None:
    gray = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    tile = ArrayReader(gray, 3).read(window(0, 2, 0, 3))
    assert tile.shape == (1, 3, 2, 3)
    back = np.zeros_like(gray)
    ArrayWriter(back).write(window(0, 2, 0, 3), tile + torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1) / 255)
    assert np.array_equal(back, gray)
