"""Bit-identity: the result for a pixel does not depend on window, stripe, batch, position or memory layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.conv_kernels import draw, weight
from tilefuse.kernels.conv2d import conv2d
from tilefuse.kernels.convolve import plan_launch
from tilefuse.kernels.epilogue import Epilogue, Prologue, Residual
from tilefuse.kernels.layer import pack_conv2d

pytestmark = pytest.mark.thorough

HALF, FULL = torch.float16, torch.float32
SAME = (1, 1, 1, 1)

# (inputs, outputs, type of the weight, options, why)
LAYERS = (
    (3, 20, FULL, {}, "flat"),
    (20, 3, FULL, {}, "an image output: widened"),
    (5, 3, FULL, {}, "an image output of few channels: flat, so not widened"),
    (20, 20, FULL, {}, "single precision"),
    (16, 24, HALF, {}, "tiles, pixels first"),
    (16, 48, HALF, {}, "tiles, channels first"),
    (16, 3, HALF, {}, "widened half"),
    (16, 12, HALF, {"shuffle": 2}, "pixel shuffle"),
    (8, 8, FULL, {"groups": 8}, "depthwise"),
)


def run(x: Tensor, w: Tensor, options: dict[str, int], padding: tuple[int, int, int, int] = SAME) -> Tensor:
    epilogue = Epilogue(bias=draw(w.shape[0], seed=3), activation="silu", shuffle=options.get("shuffle", 1))
    return conv2d(x, w, padding=padding, groups=options.get("groups", 1), epilogue=epilogue)


@pytest.mark.parametrize(("inputs", "outputs", "dtype", "options", "why"), LAYERS, ids=[row[4] for row in LAYERS])
def test_windows_stripes_and_batches_give_the_bits_of_the_whole(inputs, outputs, dtype, options, why):
    x = draw(2, 9, 13, inputs, dtype=dtype)
    w, r = weight(outputs, inputs // options.get("groups", 1), 3, 3, dtype=dtype), options.get("shuffle", 1)
    whole = run(x, w, options)
    # A window with one pixel of halo, at an odd place, of an odd size, from a batch of one.
    window = run(x[1:, 3:8, 4:12], w, options)
    assert torch.equal(window[:, r:-r, r:-r], whole[1:, 4 * r : 7 * r, 5 * r : 11 * r])
    # Stripes of rows that carry their context instead of padding.
    stripes = [run(x[:, :4], w, options, (1, 1, 0, 1)), run(x[:, 2:7], w, options, (0, 1, 0, 1))]
    stripes.append(run(x[:, 5:], w, options, (0, 1, 1, 1)))
    assert torch.equal(torch.cat(stripes, 1), whole)
    # Images of a batch in another order.
    assert torch.equal(run(x.flip(0), w, options), whole.flip(0))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("inputs", "outputs", "dtype", "options", "why"), LAYERS, ids=[row[4] for row in LAYERS])
def test_every_image_is_summed_in_one_order(inputs, outputs, dtype, options, why, capability):
    """Tiles and steps of the sum are chosen by the layer alone: of any size, batch and place in memory."""
    groups, r = options.get("groups", 1), options.get("shuffle", 1)
    w = torch.empty(outputs, inputs // groups, 3, 3, device="meta", dtype=dtype)
    layer = pack_conv2d(w, padding=SAME, groups=groups, shuffle=r)
    chosen = set()
    for n, height, width in ((1, 1, 1), (1, 17, 33), (7, 64, 64), (1, 540, 960), (2, 2160, 4096)):
        x = torch.empty(n, height, width, inputs, device="meta", dtype=dtype)
        out = torch.empty(n, height * r, width * r, layer.outputs, device="meta", dtype=dtype)
        launch = plan_launch(x, layer, Prologue(), Epilogue(shuffle=r), out, capability=capability)
        # Left to Triton, it would change with its version.
        assert launch.options["enable_fp_fusion"] is True
        chosen.add((launch.kernel, launch.config, launch.arguments.get("BK"), launch.arguments.get("FLAT")))
    assert len(chosen) == 1, why


@pytest.mark.parametrize("outputs", [24, 48])
def test_a_layout_that_descriptors_can_not_address_gives_the_same_bits(outputs):
    x, w = draw(1, 9, 13, 48, dtype=HALF), weight(outputs, 48, 3, 3, dtype=HALF)
    apart = draw(1, 9, 13, 51, dtype=HALF)[..., 1:49].copy_(x)
    assert torch.equal(run(apart, w, {}), run(x, w, {}))


def test_bytes_are_the_same_whether_stored_as_words_or_alone():
    x, w = draw(1, 6, 8, 16, dtype=HALF), weight(3, 16, 3, 3, dtype=HALF)
    epilogue = Epilogue(bias=draw(3, seed=3), out_dtype=torch.uint8, output_scale=60.0, output_shift=99.0)
    words = conv2d(x, w, padding=SAME, epilogue=epilogue)
    alone = conv2d(x[:, :, :7], w, padding=(1, 1, 1, 0), epilogue=epilogue)
    assert torch.equal(alone, words[:, :, :6])


def test_a_residual_and_a_prologue_do_not_depend_on_the_window():
    x, w = draw(1, 9, 11, 5), weight(12, 5, 3, 3)
    residual, prologue = draw(1, 9, 11, 12, seed=4), Prologue(activation="gelu")
    whole, part = (
        conv2d(image, w, padding=SAME, prologue=prologue, epilogue=Epilogue(residuals=(Residual(other, 0.5),)))
        for image, other in ((x, residual), (x[:, 2:8, 3:9], residual[:, 2:8, 3:9]))
    )
    assert torch.equal(part[:, 1:-1, 1:-1], whole[:, 3:7, 4:8])
