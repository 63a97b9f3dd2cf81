"""Convolutions that stream down strips of pixels: against plain torch, against the other paths, and strip by strip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.conv_kernels import compare, draw, run_on, weight
from tilefuse.kernels import conv_config, convolve
from tilefuse.kernels.conv2d import conv2d, conv2d_ref
from tilefuse.kernels.conv_config import LEAST_ROWS, MOST_ROWS, MULTIPROCESSORS, band_rows, pick_config
from tilefuse.kernels.epilogue import Epilogue, Prologue, Residual
from tilefuse.kernels.layer import Layer, pack_conv2d, pack_upsample_conv2d

pytestmark = pytest.mark.thorough

HALF = torch.float16
SAME = (1, 1, 1, 1)


def packed(outputs: int = 48, inputs: int = 16, kernel: tuple[int, int] = (3, 3), **options: object) -> Layer:
    return pack_conv2d(weight(outputs, inputs, *kernel, dtype=HALF), **options)  # type: ignore[arg-type]


# (input [N, H, W, C], outputs, options, why)
SHAPES = (
    ((1, 1, 1, 16), 32, {"padding": SAME}, "one pixel"),
    ((2, 3, 257, 16), 48, {"padding": SAME}, "two images, a strip and a column"),
    ((1, 2, 5, 80), 144, {"padding": SAME}, "two blocks of channels and three of columns, past both"),
    ((1, 9, 8, 24), 32, {"dilation": (1, 3), "padding": (2, 0, 1, 3)}, "dilation along a row, uneven padding"),
    ((1, 8, 9, 16), 64, {"padding": (-1, 2, -2, -1)}, "negative padding crops"),
)


@pytest.mark.parametrize(("size", "outputs", "options", "why"), SHAPES, ids=[shape[3] for shape in SHAPES])
def test_shapes_agree_with_torch(size, outputs, options, why):
    x, w = draw(*size, dtype=HALF), weight(outputs, size[3], 3, 3, dtype=HALF)
    assert pick_config(pack_conv2d(w, **options), HALF, affine=False, target=90).path == "rows"
    compare(conv2d, conv2d_ref, x, w, **options, epilogue=Epilogue(bias=draw(outputs, seed=3), activation="relu"))


@pytest.mark.parametrize("kernel", [(3, 1), (3, 5)])
def test_any_width_of_the_kernel_will_do(kernel):
    compare(conv2d, conv2d_ref, draw(1, 6, 7, 16, dtype=HALF), weight(32, 16, *kernel, dtype=HALF), padding=SAME)


@pytest.mark.parametrize(("upsample", "activation_last"), [((1,), False), ((1,), True), ((1, 1), False), ((3,), False)])
def test_residuals_agree_with_torch(upsample, activation_last):
    """Parts of a strip read them by pointers that move from part to part."""
    added = [Residual(draw(1, -(-3 // u), -(-150 // u), 64, dtype=HALF, seed=u), 0.5, 0.2, u) for u in upsample]
    epilogue = Epilogue(
        activation="prelu", slopes=draw(64, seed=5), residuals=tuple(added), activation_last=activation_last
    )
    x, w = draw(1, 3, 150, 16, dtype=HALF), weight(64, 16, 3, 3, dtype=HALF)
    compare(conv2d, conv2d_ref, x, w, padding=SAME, epilogue=epilogue)


def test_integers_are_stored_in_words():
    x, w = draw(1, 2, 140, 16, dtype=HALF), weight(48, 16, 3, 3, dtype=HALF)
    epilogue = Epilogue(out_dtype=torch.uint8, levels=True)
    compare(conv2d, conv2d_ref, x, w, padding=SAME, epilogue=epilogue)


@pytest.mark.parametrize(("rows", "outputs"), [(1, 32), (3, 48)])
def test_the_length_of_a_band_changes_no_bits(rows, outputs, monkeypatch):
    x, layer = draw(2, 5, 9, 16, dtype=HALF), packed(outputs, padding=SAME)
    epilogue = Epilogue(bias=draw(outputs, seed=3), activation="silu")
    whole = run_on(90, x, layer, epilogue)
    monkeypatch.setattr(convolve, "band_rows", lambda *_, **__: rows)
    assert torch.equal(run_on(90, x, layer, epilogue), whole)


@pytest.mark.parametrize("outputs", [32, 64])
def test_strips_and_tiles_give_the_same_bits(outputs, monkeypatch):
    x, layer = draw(1, 5, 18, 80, dtype=HALF), packed(outputs, 80, padding=SAME)
    epilogue = Epilogue(bias=draw(outputs, seed=3))
    by_strips = run_on(90, x, layer, epilogue)
    monkeypatch.setattr(conv_config, "streams", lambda _: False)
    assert pick_config(layer, HALF, affine=False, target=90).path == "tma"
    assert torch.equal(run_on(90, x, layer, epilogue), by_strips)


def test_a_window_gives_the_bits_of_the_whole():
    x, layer = draw(1, 7, 300, 16, dtype=HALF), packed(48, padding=SAME)
    whole = run_on(90, x, layer, Epilogue())
    window = run_on(90, x[:, 2:6, 31:280].contiguous(), layer, Epilogue())
    assert torch.equal(window[:, 1:-1, 1:-1], whole[:, 3:5, 32:279])


def test_layers_that_do_not_stream_take_other_paths():
    def path(layer: Layer, target: int = 90, **options: bool) -> str:
        return pick_config(layer, HALF, **{"affine": False, **options}, target=target).path

    assert path(packed()) == "rows"
    assert path(packed(), 80) == path(packed(), affine=True) == "pointer"
    assert path(packed(), 100) == "tma"
    assert path(packed(40)) == path(packed(16)) == path(packed(kernel=(5, 3))) == path(packed(dilation=(2, 1))) == "tma"
    assert path(packed(36, shuffle=3)) == "tma"
    assert path(pack_upsample_conv2d(weight(24, 16, 3, 3, dtype=HALF), scale=(2, 2), padding=SAME)) == "tma"


def test_what_two_residuals_leave_of_the_registers_holds_half_the_columns():
    added, x = Residual(draw(1, 4, 4, 64, dtype=HALF)), draw(1, 4, 4, 16, dtype=HALF)
    layer = packed(64, padding=SAME)
    blocks = [
        convolve.plan_launch(x, layer, Prologue(), Epilogue(residuals=residuals), x, capability=90).config.block_n
        for residuals in ((), (added,), (added, added), (replace(added, upsample=2),))
    ]
    assert blocks == [64, 64, 32, 32]
    assert pick_config(packed(), HALF, affine=False, target=90, residuals=1).path == "tma"


@pytest.mark.parametrize(("height", "strips"), [(1, 1), (17, 1), (256, 1), (540, 4), (1080, 8), (2160, 15)])
def test_bands_fill_the_multiprocessors(height, strips):
    rows = band_rows(height, strips)
    assert LEAST_ROWS <= rows <= max(min(height, MOST_ROWS), LEAST_ROWS)

    def length(rows: int) -> int:
        return -(-strips * -(-height // rows) // MULTIPROCESSORS) * (rows + 2)

    # As long as the work alone, shared out evenly, and a quarter more, with two rows and the two around them.
    assert length(rows) <= 1.25 * strips * height / MULTIPROCESSORS + 4
    assert band_rows(height, strips, interpreted=True) == max(min(height, MOST_ROWS), LEAST_ROWS)


def test_a_launch_for_the_compiler_has_a_band_of_any_length():
    x, layer = draw(1, 9, 11, 16, dtype=HALF), packed(padding=SAME)
    out = draw(1, 9, 11, 48, dtype=HALF)
    launches = [
        convolve.plan_launch(x, layer, Prologue(), Epilogue(), out, capability=90, emulated=emulated)
        for emulated in (False, True)
    ]
    assert [launch.arguments["ROWS"] for launch in launches] == [0, 9]
    assert [launch.arguments["rows"] for launch in launches] == [2, 9]
