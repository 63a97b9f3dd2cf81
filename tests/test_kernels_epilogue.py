"""Every stage of the epilogue, in every type, behind every kind of store."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

from tests.conv_kernels import DEVICE, assert_near, compare, draw, run_on, weight
from tilefuse.kernels.conv2d import conv2d, conv2d_ref
from tilefuse.kernels.convolve import packing, run_layer
from tilefuse.kernels.epilogue import Epilogue, Prologue, Residual
from tilefuse.kernels.image_store import image_store
from tilefuse.kernels.layer import pack_conv2d
from tilefuse.ops.pointwise import ActivationKind

pytestmark = pytest.mark.thorough

SAME = (1, 1, 1, 1)
FULL, HALF, BF16, U8, U16 = torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.uint16
BIAS = draw(12, seed=3)


def steep(dtype: torch.dtype = FULL) -> torch.Tensor:
    """Draw a weight whose results reach the flat ends of the activations."""
    return (weight(12, 5, 3, 3) * 8).to(dtype)


@pytest.mark.parametrize("kind", get_args(ActivationKind))
@pytest.mark.parametrize("last", [False, True])
def test_activations(kind, last):
    residual = Residual(draw(1, 5, 6, 12, seed=4))
    epilogue = Epilogue(bias=BIAS, activation=kind, slope=0.2, residuals=(residual,), activation_last=last)
    compare(conv2d, conv2d_ref, draw(1, 5, 6, 5), steep(), padding=SAME, epilogue=epilogue)


@pytest.mark.parametrize("shuffle", [1, 2])
@pytest.mark.parametrize("slopes", [1, 12])
def test_prelu_has_one_slope_or_one_a_channel(slopes, shuffle):
    epilogue = Epilogue(bias=BIAS, activation="prelu", slopes=draw(slopes, seed=5), shuffle=shuffle)
    compare(conv2d, conv2d_ref, draw(2, 5, 6, 5), steep(), padding=SAME, epilogue=epilogue)


def test_prelu_comes_behind_the_residuals_where_it_is_last():
    epilogue = Epilogue(
        bias=BIAS, activation="prelu", slopes=draw(12, seed=5), residuals=(Residual(draw(2, 5, 6, 12, seed=4)),),
        activation_last=True,
    )  # fmt: skip
    compare(conv2d, conv2d_ref, draw(2, 5, 6, 5), steep(), padding=SAME, epilogue=epilogue)


@pytest.mark.parametrize("shuffle", [1, 2])
def test_residuals_are_scaled_one_after_the_other(shuffle):
    size = (2, 5 * shuffle, 7 * shuffle, 12 // shuffle**2)
    first, second = draw(*size, seed=4), draw(*size, seed=5)
    epilogue = Epilogue(residuals=(Residual(first, 0.5, 0.2), Residual(second, 2.0, -0.3)), shuffle=shuffle)
    compare(conv2d, conv2d_ref, draw(2, 5, 7, 5), weight(12, 5, 3, 3), padding=SAME, epilogue=epilogue)


def test_a_residual_is_enlarged_while_it_is_read():
    """As Compact adds its input, enlarged by nearest neighbours, behind the pixel shuffle; and from a wider buffer."""
    x = draw(2, 5, 7, 3)
    epilogue = Epilogue(residuals=(Residual(draw(2, 5, 7, 9)[..., 3:6], upsample=2),), shuffle=2)
    compare(conv2d, conv2d_ref, x, weight(12, 3, 3, 3), padding=SAME, epilogue=epilogue)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (None, 0.5), (-0.5, None)])
def test_clamp(low, high):
    epilogue = Epilogue(bias=BIAS, low=low, high=high)
    compare(conv2d, conv2d_ref, draw(1, 5, 6, 5), steep(), padding=SAME, epilogue=epilogue)


@pytest.mark.parametrize("dtype", [FULL, HALF, BF16, U8, U16])
@pytest.mark.parametrize("made", [FULL, HALF, BF16, U8, U16])
def test_every_type_becomes_every_type(dtype, made):
    x = draw(1, 5, 6, 5, dtype=dtype)
    w = weight(12, 5, 3, 3, dtype=dtype if dtype.is_floating_point else FULL) * (1 if dtype != U16 else 1 / 256)
    epilogue = Epilogue(bias=BIAS, out_dtype=made, output_scale=100.0, output_shift=99.0)
    if made in (U8, U16) and dtype in (HALF, BF16):
        # Sums in another order may round to the next level.
        ours, theirs = (f(x, w, padding=SAME, epilogue=epilogue) for f in (conv2d, conv2d_ref))
        assert (ours.int() - theirs.int()).abs().max() <= 1
    else:
        compare(conv2d, conv2d_ref, x, w, padding=SAME, epilogue=epilogue)


def test_integers_are_clipped_and_rounded_half_to_even():
    x = torch.tensor([-3.0, -0.5, 0.5, 1.5, 2.5, 254.5, 255.5, 300.0], device=DEVICE).reshape(1, 1, 8, 1)
    made = conv2d(x, torch.ones(1, 1, 1, 1, device=DEVICE), epilogue=Epilogue(out_dtype=U8))
    assert made.flatten().tolist() == [0, 0, 0, 2, 2, 254, 255, 255]


@pytest.mark.parametrize("dtype", [HALF, BF16])
def test_half_types_round_as_torch_does(dtype):
    """Values half-way between two of the type, and near them: 1 + k / 2¹² from 1 to 1.5."""
    x = (1 + torch.arange(2048, device=DEVICE) / 4096).reshape(1, 1, 2048, 1)
    made = conv2d(x, torch.ones(1, 1, 1, 1, device=DEVICE), epilogue=Epilogue(out_dtype=dtype))
    assert torch.equal(made, x.to(dtype))


@pytest.mark.parametrize("dtype", [U8, U16, HALF, BF16, FULL])
@pytest.mark.parametrize("shuffle", [2, 3, 4])
@pytest.mark.parametrize("width", [4, 5])
def test_pixel_shuffle_stores(dtype, shuffle, width):
    """Widths whose rows begin at whole words, and others; three channels, as images have."""
    channels = 3 * shuffle**2
    epilogue = Epilogue(
        bias=draw(channels, seed=3), shuffle=shuffle, out_dtype=dtype, output_scale=60.0, output_shift=99.0
    )
    x, w = draw(2, 3, width, 5), weight(channels, 5, 3, 3)
    ours, theirs = (f(x, w, padding=SAME, epilogue=epilogue) for f in (conv2d, conv2d_ref))
    assert_near(ours, theirs)


@pytest.mark.parametrize(
    ("inputs", "outputs", "shuffle", "groups", "computed", "dtype", "why"),
    [
        (5, 12, 2, 1, HALF, U8, "two bytes a word"),
        (5, 12, 2, 1, BF16, U16, "two integers of two bytes a word"),
        (32, 48, 4, 1, HALF, U8, "four bytes a word, by descriptors"),
        (5, 27, 3, 1, FULL, U8, "bytes alone"),
        (16, 3, 1, 1, FULL, U8, "four pixels a row of the product"),
        (4, 8, 1, 4, HALF, U16, "depthwise"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_levels_are_those_of_a_result_stored_and_converted(inputs, outputs, shuffle, groups, computed, dtype, why):
    """Beside 0..1, between levels, and where half precision overflows: the bits of `image_store`, and its flag."""
    x, w = draw(1, 2, 4, inputs, dtype=computed), weight(outputs, inputs // groups, 3, 3, dtype=computed)
    flags = [torch.zeros(1, dtype=torch.int32, device=DEVICE) for _ in range(3)]
    plain = Epilogue(bias=draw(outputs, seed=3) + 0.5, shuffle=shuffle)
    made = replace(plain, out_dtype=dtype, levels=True)
    options = {"padding": SAME, "groups": groups}
    for infinite in (False, True):
        if infinite:
            x[0, 1, 3, 0] = torch.inf
        floats = conv2d(x, w, **options, epilogue=plain)
        assert bool(floats.isfinite().all()) != infinite
        stored = image_store(floats.float(), dtype, flag=flags[0])
        levels = conv2d(x, w, **options, epilogue=replace(made, flag=flags[1]))
        assert torch.equal(levels.int(), stored.int())
        reference = conv2d_ref(x, w, **options, epilogue=replace(made, flag=flags[2]))
        if computed == FULL and not infinite:
            assert (reference.int() - stored.int()).abs().max() <= 1
        assert [flag.item() for flag in flags] == [infinite] * 3
        assert {0, torch.iinfo(dtype).max} <= set(stored.flatten().tolist())
        assert infinite or stored.int().unique().numel() > 4


def test_a_value_past_half_precision_is_flagged_where_it_would_be_stored():
    """70000 fits the sums, which are float32, but not the result of a half-precision layer."""
    x = torch.full((1, 1, 2, 1), 200.0, dtype=HALF, device=DEVICE)
    flag = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    epilogue = Epilogue(out_dtype=U8, levels=True, flag=flag)
    for number, flagged, level in ((300.0, 0, 255), (350.0, 1, 0), (300.0, 1, 255)):
        w = torch.full((1, 1, 1, 1), number, dtype=HALF, device=DEVICE)
        assert conv2d(x, w, epilogue=epilogue).unique().tolist() == [level]
        assert flag.item() == flagged
        assert conv2d(x, w, epilogue=replace(epilogue, flag=None)).unique().tolist() == [level]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("inputs", "groups"), [(4, 1), (16, 1), (16, 16)])
@pytest.mark.parametrize("shuffle", [1, 2])
def test_what_half_precision_can_not_hold_becomes_no_number(inputs, groups, shuffle, capability):
    """An infinity could be hidden by whatever follows: a limit makes it one, a sigmoid nought or one."""
    x = torch.ones(1, 2, 8, inputs, dtype=HALF)
    x[0, 1, 3] = 32.0
    for number, largest in ((2047.0, 65504.0), (2048.0, torch.nan), (-2048.0, torch.nan)):
        w = torch.zeros(16, inputs // groups, 1, 1, dtype=HALF)
        w[:, 0] = number
        layer = pack_conv2d(w.to(DEVICE), groups=groups, shuffle=shuffle)
        made = run_on(capability, x.to(DEVICE), layer, Epilogue(shuffle=shuffle)).cpu()
        expected = torch.full_like(made, number)
        expected[0, shuffle : 2 * shuffle, 3 * shuffle : 4 * shuffle] = largest
        assert torch.equal(made.isnan(), expected.isnan())
        assert torch.equal(made[~expected.isnan()], expected[~expected.isnan()])
    assert torch.equal(conv2d(x, w, groups=groups).isnan(), conv2d_ref(x, w, groups=groups).isnan())


def test_what_a_prologue_can_not_hold_in_half_precision_becomes_no_number():
    x, scale = torch.full((1, 1, 2, 4), 300.0, dtype=HALF, device=DEVICE), torch.full((1, 4), 300.0, device=DEVICE)
    prologue, epilogue = Prologue(scale=scale, shift=scale), Epilogue(activation="sigmoid")
    for launcher in (conv2d, conv2d_ref):
        w = torch.ones(3, 4, 1, 1, dtype=HALF, device=DEVICE)
        assert launcher(x, w, prologue=prologue, epilogue=epilogue).isnan().all()


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("columns", [20, 64])
@pytest.mark.parametrize("edge", [1, 2])
def test_only_pixels_of_the_image_raise_the_flag(edge, columns, capability):
    """A tile's positions past the border would see the last row or column through a tap that no pixel has there."""
    x, w = torch.zeros(2, 4, 5, 16, dtype=HALF), torch.zeros(columns, 16, 3, 3, dtype=HALF)
    x.select(edge, -1).fill_(100.0)
    w[:, :, edge - 1, 2 - edge] = 2000.0
    flag, layer = torch.zeros(1, dtype=torch.int32, device=DEVICE), pack_conv2d(w.to(DEVICE), padding=SAME)
    epilogue = Epilogue(out_dtype=U8, levels=True, flag=flag)
    for image, raised in ((x, 0), (x.flip(edge), 1)):
        run_on(capability, image.to(DEVICE), layer, epilogue)
        assert flag.item() == raised


@pytest.mark.parametrize(
    ("dtype", "shuffle", "outputs", "width", "words"),
    [
        (U8, 4, 48, 5, 4), (U8, 2, 12, 4, 2), (U8, 2, 12, 5, 2), (U8, 3, 27, 4, 1), (U8, 1, 3, 8, 4), (U8, 1, 3, 6, 1),
        (U8, 1, 64, 5, 4), (U16, 2, 12, 5, 2), (HALF, 4, 48, 5, 2), (HALF, 1, 64, 5, 1), (FULL, 2, 12, 4, 1),
    ],
)  # fmt: skip
def test_neighbours_are_stored_as_words(dtype, shuffle, outputs, width, words):
    layer = pack_conv2d(weight(outputs, 16, 3, 3), padding=SAME, shuffle=shuffle)
    out = torch.empty(1, *layer.output_size(4, width), layer.outputs, dtype=dtype, device="meta")
    assert packing(out, layer) == words
    # A slice of a wider buffer has gaps between pixels, so words would overwrite them.
    wider = out.new_empty(*out.shape[:3], layer.outputs + 1)[..., : layer.outputs]
    assert packing(wider, layer) == 1


def test_words_begin_at_whole_words():
    layer, memory = pack_conv2d(weight(48, 16, 3, 3), shuffle=4), torch.empty(4 * 8 * 3 + 4, dtype=U8)
    places = [memory.as_strided((1, 4, 8, 3), (96, 24, 3, 1), start) for start in (0, 1, 2)]
    assert [packing(place, layer) for place in places] == [4, 1, 2]


@pytest.mark.parametrize("columns", [24, 48, 128])
@pytest.mark.parametrize("capability", [80, 90])
def test_the_epilogue_is_the_same_behind_every_kernel(columns, capability):
    shuffle = 4 if columns == 48 else 1
    x, w = draw(1, 5, 17, 32, dtype=HALF), weight(columns, 32, 3, 3, dtype=HALF)
    size = (1, 5 * shuffle, 17 * shuffle, columns // shuffle**2)
    epilogue = Epilogue(
        bias=draw(columns, seed=3), activation="prelu", slopes=draw(columns, seed=5), shuffle=shuffle,
        residuals=(Residual(draw(*size, dtype=HALF, seed=6), 0.5, 0.2),), low=-0.5, high=1.0,
    )  # fmt: skip
    layer = pack_conv2d(w, padding=SAME, shuffle=shuffle)
    assert_near(run_on(capability, x, layer, epilogue), conv2d_ref(x, w, padding=SAME, epilogue=epilogue))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "silu", "hardswish", "tanh", "gelu"])
def test_overflow_is_seen_behind_an_activation(activation):
    """A value that is no number stays none, or half-precision windows could not be told to need single precision."""
    x = draw(1, 1, 1, 4)
    x[..., 0] = torch.nan
    slopes = draw(12, seed=5) if activation == "prelu" else None
    epilogue = Epilogue(activation=activation, slope=0.2, slopes=slopes, low=0.0, high=1.0)
    assert conv2d(x, weight(12, 4, 1, 1), epilogue=epilogue).isnan().all()


def test_stages_left_out_cost_nothing():
    """The defaults change no bit."""
    x, layer = draw(1, 3, 4, 5), pack_conv2d(weight(12, 5, 3, 3))
    plain = run_layer(x, layer)
    assert torch.equal(plain, run_layer(x, layer, epilogue=replace(Epilogue(), output_scale=1.0, slope=3.0)))
