"""Layers whose output has phases: convolutions behind nearest upsampling, transposed ones; and linear layers."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.conv_kernels import assert_near, compare, draw, weight
from tilefuse.errors import BackendError
from tilefuse.kernels.conv_transpose2d import conv_transpose2d, conv_transpose2d_ref
from tilefuse.kernels.epilogue import Epilogue, Prologue, Residual
from tilefuse.kernels.layer import pack_conv_transpose2d, pack_upsample_conv2d
from tilefuse.kernels.linear import linear, linear_ref, pack_linear
from tilefuse.kernels.upsample_conv2d import upsample_conv2d, upsample_conv2d_ref

pytestmark = pytest.mark.thorough

HALF = torch.float16
SAME = (1, 1, 1, 1)

UPSAMPLED = (
    ((1, 1, 1, 16), (16, 16, 3, 3), {"scale": (2, 2), "padding": SAME}, "one pixel: all of it border"),
    ((2, 3, 5, 8), (20, 8, 3, 3), {"scale": (2, 2), "padding": SAME}, "the usual: four 2x2 phases"),
    ((1, 3, 5, 8), (3, 8, 3, 3), {"scale": (2, 2), "padding": SAME}, "few outputs: one product"),
    ((1, 3, 5, 8), (20, 8, 3, 3), {"scale": (3, 3), "padding": SAME}, "phases of unequal windows"),
    ((1, 3, 5, 8), (20, 8, 5, 4), {"scale": (3, 2), "padding": (2, 0, 1, 3)}, "an output that cuts a phase"),
    ((1, 4, 5, 8), (20, 8, 3, 3), {"scale": (4, 1), "padding": (0, 0, 0, 0)}, "one axis, no padding"),
    ((1, 4, 5, 8), (20, 8, 3, 3), {"scale": (2, 2), "padding": (-1, 3, 2, -3)}, "negative padding"),
    ((1, 4, 5, 8), (20, 4, 3, 3), {"scale": (2, 2), "padding": SAME, "groups": 2}, "groups"),
    ((1, 3, 3, 8), (20, 8, 7, 7), {"scale": (2, 2), "padding": (3, 3, 3, 3)}, "a wide kernel"),
)

TRANSPOSED = (
    ((2, 1, 1, 20), (20, 24, 4, 4), {}, "a latent: stride 1 on one pixel"),
    ((1, 3, 5, 20), (20, 24, 4, 4), {"stride": (2, 2), "padding": SAME}, "the usual: four 2x2 phases"),
    ((1, 3, 5, 20), (20, 3, 4, 4), {"stride": (2, 2), "padding": SAME}, "few outputs: one product"),
    ((1, 3, 4, 12), (12, 1, 9, 9), {"stride": (3, 3), "padding": (4,) * 4, "output_padding": (2, 2)}, "FSRCNN x3"),
    ((1, 3, 5, 6), (6, 20, 2, 2), {"stride": (2, 2)}, "no overlap"),
    ((1, 3, 5, 6), (6, 20, 2, 1), {"stride": (3, 2)}, "gaps that no input reaches"),
    ((1, 4, 5, 6), (6, 20, 3, 3), {"stride": (2, 1), "dilation": (2, 3), "padding": (0, 1, 2, 0)}, "dilation"),
    ((1, 4, 5, 6), (6, 20, 3, 3), {"stride": (2, 2), "output_padding": (3, 0)}, "rows past the last input"),
    ((1, 4, 5, 6), (6, 4, 3, 3), {"stride": (2, 2), "padding": (-1, 3, 0, -2), "groups": 2}, "groups, crops"),
    ((1, 4, 5, 6), (6, 1, 3, 3), {"stride": (2, 2), "groups": 6}, "depthwise"),
)


@pytest.mark.parametrize(("size", "kernel", "options", "why"), UPSAMPLED, ids=[shape[3] for shape in UPSAMPLED])
def test_upsampled_shapes_agree_with_torch(size, kernel, options, why):
    compare(upsample_conv2d, upsample_conv2d_ref, draw(*size), weight(*kernel), **options)


@pytest.mark.parametrize(("size", "kernel", "options", "why"), TRANSPOSED, ids=[shape[3] for shape in TRANSPOSED])
def test_transposed_shapes_agree_with_torch(size, kernel, options, why):
    compare(conv_transpose2d, conv_transpose2d_ref, draw(*size), weight(*kernel), **options)


def test_phases_do_fewer_products():
    """Nearest ×2 and 3×3: 2.25 times fewer products than on the upsampled image, four times fewer with few outputs."""
    usual = pack_upsample_conv2d(weight(64, 64, 3, 3), scale=(2, 2), padding=SAME)
    assert (usual.phases, usual.spread, usual.kernel) == ((2, 2), (1, 1), (2, 2))
    image = pack_upsample_conv2d(weight(3, 64, 3, 3), scale=(2, 2), padding=SAME)
    assert (image.phases, image.spread, image.kernel) == ((1, 1), (2, 2), (3, 3))
    fsrcnn = pack_conv_transpose2d(weight(56, 1, 9, 9), stride=(3, 3), padding=(4,) * 4)
    assert (fsrcnn.phases, fsrcnn.spread, fsrcnn.kernel) == ((1, 1), (3, 3), (4, 4))


@pytest.mark.parametrize("outputs", [3, 36])
@pytest.mark.parametrize("kind", ["upsample", "transposed"])
@pytest.mark.parametrize("made", [torch.float32, torch.uint8])
def test_phases_have_every_epilogue(kind, outputs, made):
    epilogue = Epilogue(
        bias=draw(outputs, seed=3), activation="prelu", slopes=draw(outputs, seed=4),
        residuals=(Residual(draw(2, 6, 10, outputs, seed=5), 0.5, 0.2), Residual(draw(2, 3, 5, outputs), upsample=2)),
        out_dtype=made, output_scale=60.0, output_shift=99.0,
    )  # fmt: skip
    x, prologue = draw(2, 3, 5, 16), Prologue(activation="relu")
    if kind == "upsample":
        kernel, reference, w, rest = upsample_conv2d, upsample_conv2d_ref, weight(outputs, 16, 3, 3), {"scale": (2, 2)}
    else:
        kernel, reference, w = conv_transpose2d, conv_transpose2d_ref, weight(16, outputs, 4, 4)
        rest = {"stride": (2, 2)}
    compare(kernel, reference, x, w, padding=SAME, epilogue=epilogue, prologue=prologue, **rest)


@pytest.mark.parametrize("kind", ["upsample", "transposed"])
def test_phases_may_be_shuffled(kind):
    x, epilogue = draw(1, 3, 5, 8), Epilogue(bias=draw(20, seed=3), activation="relu", shuffle=2)
    if kind == "upsample":
        compare(
            upsample_conv2d, upsample_conv2d_ref, x, weight(20, 8, 3, 3), scale=(2, 2), padding=SAME, epilogue=epilogue
        )
    else:
        compare(conv_transpose2d, conv_transpose2d_ref, x, weight(8, 20, 4, 4), stride=(2, 2), epilogue=epilogue)


@pytest.mark.parametrize("outputs", [3, 40])
def test_half_types_run_on_tiles(outputs):
    """Sums of taps round once more than the reference's weights do."""
    x, w = draw(1, 9, 17, 32, dtype=HALF), weight(outputs, 32, 3, 3, dtype=HALF)
    made = upsample_conv2d(x, w, scale=(2, 2), padding=SAME)
    expected = upsample_conv2d_ref(x, w, scale=(2, 2), padding=SAME)
    assert (made.float() - expected.float()).square().mean().sqrt() < 1e-3
    assert (made.float() - expected.float()).abs().max() < 1e-2
    w = weight(32, outputs, 4, 4, dtype=HALF)
    compare(conv_transpose2d, conv_transpose2d_ref, x, w, stride=(2, 2), padding=SAME)


@pytest.mark.parametrize("kind", ["upsample", "transposed"])
@pytest.mark.parametrize("outputs", [3, 20])
def test_a_window_gives_the_bits_of_the_whole(kind, outputs):
    """Rows 4 to 6 and columns 3 to 14 of the input with one pixel of halo."""
    x, epilogue = draw(2, 9, 18, 16, dtype=HALF), Epilogue(bias=draw(outputs, seed=3), activation="silu")
    window = x[:1, 3:8, 2:16]
    if kind == "upsample":
        w = weight(outputs, 16, 3, 3, dtype=HALF)
        whole, part = (
            upsample_conv2d(image, w, scale=(2, 2), padding=SAME, epilogue=epilogue) for image in (x, window)
        )
    else:
        w = weight(16, outputs, 4, 4, dtype=HALF)
        whole, part = (
            conv_transpose2d(image, w, stride=(2, 2), padding=SAME, epilogue=epilogue) for image in (x, window)
        )
    assert torch.equal(part[:, 2:-2, 2:-2], whole[:1, 8:14, 6:30])


def test_phases_take_empty_batches_and_refuse_what_convolutions_refuse():
    assert upsample_conv2d(draw(0, 2, 3, 8), weight(4, 8, 3, 3), scale=(2, 2), padding=SAME).shape == (0, 4, 6, 4)
    assert conv_transpose2d(draw(0, 2, 3, 8), weight(8, 4, 2, 2), stride=(2, 2)).shape == (0, 4, 6, 4)
    with pytest.raises(BackendError, match="x is of 8 channels; accepted: 6"):
        conv_transpose2d(draw(1, 2, 3, 8), weight(6, 4, 2, 2))
    with pytest.raises(BackendError, match=r"x is torch\.float16"):
        upsample_conv2d(draw(1, 2, 3, 8, dtype=HALF), weight(4, 8, 3, 3), scale=(2, 2))
    with pytest.raises(BackendError, match="no size may be zero"):
        upsample_conv2d(draw(1, 2, 3, 8), weight(4, 8, 3, 3), scale=(2, 0))
    with pytest.raises(BackendError, match="groups is 3; accepted: a divisor"):
        upsample_conv2d(draw(1, 2, 3, 24), weight(4, 8, 3, 3), scale=(2, 2), groups=3)
    for launcher in (conv_transpose2d, partial(upsample_conv2d, scale=(2, 2))):
        with pytest.raises(BackendError, match="groups is 0; accepted: 1 and more"):
            launcher(draw(1, 2, 3, 8), weight(8, 8, 2, 2), groups=0)


@pytest.mark.parametrize("dtype", [torch.float32, HALF, torch.bfloat16])
@pytest.mark.parametrize(("size", "outputs"), [((20,), 5), ((3, 20), 70), ((2, 3, 130), 1), ((64, 100), 48)])
def test_linear_agrees_with_torch(size, outputs, dtype):
    x, w = draw(*size, dtype=dtype), weight(outputs, size[-1], dtype=dtype)
    residual = Residual(draw(*size[:-1], outputs, dtype=dtype, seed=6), 0.5)
    epilogue = Epilogue(bias=draw(outputs, seed=3), activation="leaky_relu", slope=0.2, residuals=(residual,))
    expected = linear_ref(x, w, epilogue=epilogue)
    assert expected.shape == (*size[:-1], outputs)
    assert_near(linear(x, w, epilogue=epilogue), expected)
    out = torch.full_like(expected, torch.nan)
    assert linear(x, pack_linear(w), epilogue=epilogue, out=out) is out
    assert_near(out, expected)


def test_linear_takes_views_and_empty_batches_and_names_what_it_refuses():
    x, w = draw(4, 40)[:, 10:30], weight(8, 20)
    assert_near(linear(x, w), linear_ref(x.contiguous(), w))
    assert_near(linear(x.T.contiguous().T, w), linear_ref(x.contiguous(), w))
    assert linear(x[:0], w).shape == (0, 8)
    with pytest.raises(BackendError, match="x is of 19 channels; accepted: 20"):
        linear(x[:, 1:], w)
    with pytest.raises(BackendError, match="weight is of shape"):
        linear(x, weight(8, 20, 1, 1))
    with pytest.raises(BackendError, match="x is of type ndarray; accepted: a torch tensor"):
        linear(x.cpu().numpy(), w)
    with pytest.raises(BackendError, match=r"epilogue\.shuffle is 2"):
        linear(x, w, epilogue=Epilogue(shuffle=2))
