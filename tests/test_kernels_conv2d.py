"""The convolution kernels against plain torch: shapes, borders, types, layouts, prologues, and their refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.conv_kernels import DEVICE, assert_near, compare, draw, run_on, weight
from tilefuse.errors import BackendError
from tilefuse.kernels.conv2d import conv2d, conv2d_ref
from tilefuse.kernels.conv_config import pick_config
from tilefuse.kernels.convolve import run_layer
from tilefuse.kernels.epilogue import Epilogue, Prologue, Residual
from tilefuse.kernels.image_load import image_load
from tilefuse.kernels.layer import pack_conv2d

pytestmark = pytest.mark.thorough

HALF, BF16, FULL = torch.float16, torch.bfloat16, torch.float32
SAME = (1, 1, 1, 1)

# (input [N, H, W, C], weight [O, C / groups, KH, KW], options, why)
SHAPES = (
    ((1, 1, 1, 1), (1, 1, 1, 1), {}, "one of everything"),
    ((1, 1, 1, 2), (5, 2, 3, 3), {"padding": SAME}, "padding alone around one pixel"),
    ((2, 3, 2, 3), (8, 3, 3, 3), {"padding": SAME}, "few channels: taps and channels share a step"),
    ((1, 17, 3, 5), (3, 5, 5, 5), {"padding": (2, 2, 2, 2)}, "an image output, four pixels a row of the product"),
    ((1, 2, 17, 20), (3, 20, 3, 3), {"padding": SAME}, "an odd width, and channels past a block"),
    ((1, 9, 7, 16), (7, 16, 3, 3), {"stride": (2, 3), "padding": SAME}, "strides"),
    ((1, 9, 7, 4), (4, 4, 3, 3), {"stride": (2, 3), "padding": SAME}, "strides of few channels"),
    ((1, 9, 7, 16), (4, 16, 3, 3), {"stride": (2, 3), "padding": SAME}, "strides of a widened layer"),
    ((1, 9, 8, 16), (6, 16, 3, 2), {"dilation": (2, 3), "padding": (2, 0, 1, 3)}, "dilation, uneven padding"),
    ((1, 5, 6, 24), (10, 12, 3, 3), {"groups": 2, "padding": SAME}, "two groups of twelve"),
    ((2, 5, 6, 70), (70, 1, 3, 3), {"groups": 70, "padding": SAME}, "depthwise, past a block"),
    ((1, 5, 6, 6), (18, 1, 3, 3), {"groups": 6, "padding": SAME}, "depthwise, three outputs an input"),
    ((1, 6, 6, 80), (130, 80, 1, 1), {}, "1x1, past a block of channels and of columns"),
    ((1, 8, 9, 16), (16, 16, 3, 3), {"padding": (-1, 2, -2, -1)}, "negative padding crops"),
    ((1, 4, 17, 3), (4, 3, 1, 9), {"padding": (0, 4, 0, 4)}, "a flat kernel"),
)


@pytest.mark.parametrize(("size", "kernel", "options", "why"), SHAPES, ids=[shape[3] for shape in SHAPES])
def test_shapes_agree_with_torch(size, kernel, options, why):
    compare(conv2d, conv2d_ref, draw(*size), weight(*kernel), **options)


def test_groups_go_through_a_pixel_shuffle():
    x, w = draw(1, 3, 4, 10), weight(24, 5, 3, 3)
    compare(conv2d, conv2d_ref, x, w, padding=SAME, groups=2, epilogue=Epilogue(bias=draw(24, seed=3), shuffle=2))


@pytest.mark.parametrize("dtype", [HALF, BF16])
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 24), (48, 48), (16, 130), (3, 20), (24, 3)], ids=lambda n: str(n))
def test_half_types_agree_with_torch(inputs, outputs, dtype):
    """With 16 inputs and more these are strips of 256 pixels or tiles of 8 × 16, cut ones."""
    x, w = draw(1, 9, 11, inputs, dtype=dtype), weight(outputs, inputs, 3, 3, dtype=dtype)
    compare(conv2d, conv2d_ref, x, w, padding=SAME, epilogue=Epilogue(bias=draw(outputs, seed=3)))


@pytest.mark.parametrize("capability", [80, 90])
def test_dilated_and_uneven_taps_agree_on_every_path(capability):
    x, w, padding = draw(1, 7, 19, 16, dtype=HALF), weight(20, 16, 3, 2, dtype=HALF), (2, 0, 1, 3)
    made = run_on(capability, x, pack_conv2d(w, dilation=(2, 3), padding=padding), Epilogue())
    assert_near(made, conv2d_ref(x, w, dilation=(2, 3), padding=padding))


def test_every_path_and_operand_order_is_reached():
    paths = {
        (columns, config.path, config.swap)
        for columns in (24, 32, 64, 128)
        for target in (80, 90, 100)
        for config in [
            pick_config(pack_conv2d(weight(columns, 64, 3, 3, dtype=HALF)), HALF, affine=False, target=target)
        ]
    }
    assert paths == {
        (32, "rows", False), (64, "rows", True), (128, "rows", True),
        (24, "tma", False), (32, "tma", False), (64, "tma", True), (128, "tma", False),
        (24, "pointer", False), (32, "pointer", False), (64, "pointer", False), (128, "pointer", False),
    }  # fmt: skip


@pytest.mark.parametrize("columns", [24, 64, 128])
def test_descriptors_and_pointers_give_the_same_bits(columns):
    x, layer = draw(1, 9, 18, 32, dtype=HALF), pack_conv2d(weight(columns, 32, 3, 3, dtype=HALF), padding=SAME)
    epilogue = Epilogue(bias=draw(columns, seed=3), activation="silu")
    by_descriptor, by_pointer = (run_on(capability, x, layer, epilogue) for capability in (90, 80))
    assert torch.equal(by_descriptor, by_pointer)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_integers_become_floats_on_the_way_in(dtype):
    top = torch.iinfo(dtype).max
    x, w = draw(1, 5, 6, 3, dtype=dtype), weight(8, 3, 3, 3, dtype=HALF)
    compare(conv2d, conv2d_ref, x, w, padding=SAME, prologue=Prologue(input_scale=1 / top))


@pytest.mark.parametrize(("dtype", "computed"), [(torch.uint8, HALF), (torch.uint16, FULL)])
@pytest.mark.parametrize("kind", ["dense", "depthwise", "normalised"])
def test_integers_are_read_as_the_floats_that_a_load_makes_of_them(kind, dtype, computed):
    """The same bits, also where a prologue goes on with the rounded value."""
    x, groups = draw(2, 2, 3, 3, dtype=dtype), 3 if kind == "depthwise" else 1
    w, full = weight(6, 3 // groups, 3, 3, dtype=computed), torch.iinfo(dtype).max
    prologue = Prologue(1 / full)
    if kind == "normalised":
        prologue = replace(prologue, scale=draw(2, 3, seed=5), shift=draw(2, 3, seed=6), activation="silu")
    loaded = conv2d(image_load(x, 1 / full, computed), w, padding=SAME, groups=groups, prologue=prologue)
    assert torch.equal(conv2d(x, w, padding=SAME, groups=groups, prologue=prologue), loaded)
    assert_near(loaded, conv2d_ref(x, w, padding=SAME, groups=groups, prologue=prologue))


@pytest.mark.parametrize("inputs", [3, 20])
@pytest.mark.parametrize("dtype", [FULL, HALF])
def test_a_normalisation_is_applied_before_the_padding(inputs, dtype):
    x, w = draw(2, 5, 6, inputs, dtype=dtype), weight(18, inputs, 3, 3, dtype=dtype)
    scale, shift = draw(2, inputs, seed=5), draw(2, inputs, seed=6) + 2
    prologue = Prologue(scale=scale, shift=shift, activation="leaky_relu", slope=0.2)
    compare(conv2d, conv2d_ref, x, w, padding=SAME, prologue=prologue)


@pytest.mark.parametrize("inputs", [3, 20])
def test_padding_is_zero_behind_an_activation_that_is_not(inputs):
    x, w = draw(1, 3, 4, inputs), weight(8, inputs, 3, 3)
    compare(conv2d, conv2d_ref, x, w, padding=SAME, prologue=Prologue(activation="sigmoid"))


@pytest.mark.parametrize("inputs", [3, 20])
def test_a_normalisation_reaches_every_group(inputs):
    x, w = draw(2, 4, 5, 2 * inputs), weight(6, inputs, 3, 3)
    prologue = Prologue(scale=draw(2, 2 * inputs, seed=5), shift=draw(2, 2 * inputs, seed=6) + 2)
    compare(conv2d, conv2d_ref, x, w, padding=SAME, groups=2, prologue=prologue)


def test_a_normalisation_reaches_a_depthwise_layer():
    x, w = draw(2, 5, 6, 8), weight(8, 1, 3, 3)
    prologue = Prologue(scale=draw(2, 8, seed=5), shift=draw(2, 8, seed=6) + 2, activation="relu")
    compare(conv2d, conv2d_ref, x, w, padding=SAME, groups=8, prologue=prologue)


@pytest.mark.parametrize("dtype", [FULL, HALF])
@pytest.mark.parametrize("layout", ["channels of a wider buffer", "every second row and column", "an odd offset"])
def test_inputs_may_be_views(layout, dtype):
    wide = torch.full((2, 10, 14, 40), torch.nan, dtype=dtype, device=DEVICE)
    view = {
        "channels of a wider buffer": wide[:, :5, :7, 8:24],
        "every second row and column": wide[:, ::2, ::2, :16],
        "an odd offset": wide[:, 1:6, 3:10, 3:19],
    }[layout]
    x = draw(2, 5, 7, 16, dtype=dtype)
    view.copy_(x)
    w = weight(24, 16, 3, 3, dtype=dtype)
    assert torch.equal(conv2d(view, w, padding=SAME), conv2d(x, w, padding=SAME))


def test_a_dense_block_writes_beside_what_it_reads():
    buffer = torch.full((1, 7, 9, 32), torch.nan, dtype=HALF, device=DEVICE)
    buffer[..., :16] = draw(1, 7, 9, 16, dtype=HALF)
    w = weight(16, 16, 3, 3, dtype=HALF)
    expected = conv2d_ref(buffer[..., :16].contiguous(), w, padding=SAME)
    made = conv2d(buffer[..., :16], w, padding=SAME, epilogue=Epilogue(channel_offset=16), out=buffer)
    assert_near(made, expected)
    assert_near(buffer[..., 16:], expected)


def test_a_packed_layer_runs_again_and_again():
    layer, w = pack_conv2d(weight(8, 5, 3, 3), padding=SAME), weight(8, 5, 3, 3)
    for height in (2, 3):
        x = draw(1, height, 4, 5)
        assert_near(run_layer(x, layer), conv2d_ref(x, w, padding=SAME))


def test_an_empty_batch_gives_an_empty_result():
    made = conv2d(draw(0, 5, 6, 3), weight(8, 3, 3, 3), padding=SAME, epilogue=Epilogue(out_dtype=torch.uint8))
    assert made.shape == (0, 5, 6, 8)
    assert made.dtype == torch.uint8


@pytest.mark.parametrize("apart", ["images", "rows"])
@pytest.mark.parametrize("groups", [1, 4])
def test_places_past_two_to_the_31_are_addressed(groups, apart):
    """Three images, or rows, 2³⁰ and more bytes apart: address space, of which a few pages are ever touched."""
    step = 2**30 + 64
    far_in, far_out = (torch.empty(2 * step + 4096, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    size, steps = ((3, 4, 4), (step, 16)) if apart == "images" else ((1, 3, 4), (3 * step, step))
    x, out = (far.as_strided((*size, 4), (*steps, 4, 1)) for far in (far_in, far_out))
    near = draw(*size, 4, dtype=torch.uint8)
    x.copy_(near)
    w, epilogue = weight(4, 4 // groups, 3, 3), Epilogue(out_dtype=torch.uint8, output_scale=90.0, output_shift=100.0)
    conv2d(x, w, padding=SAME, groups=groups, epilogue=epilogue, out=out)
    assert torch.equal(out, conv2d_ref(near, w, padding=SAME, groups=groups, epilogue=epilogue))


X, W = (1, 4, 4, 16), (8, 16, 3, 3)
REFUSED = {
    "x is torch.float64": lambda: conv2d(draw(*X).double(), weight(*W)),
    "x is torch.float16": lambda: conv2d(draw(*X, dtype=HALF), weight(*W)),
    "x is of 16 channels": lambda: conv2d(draw(*X), weight(8, 12, 3, 3)),
    "x is of shape": lambda: conv2d(draw(4, 4, 16), weight(*W)),
    "x is of strides": lambda: conv2d(draw(1, 16, 4, 4).permute(0, 2, 3, 1), weight(*W)),
    "x is of type ndarray": lambda: conv2d(draw(*X).cpu().numpy(), weight(*W)),  # type: ignore[arg-type]
    "x is of layout torch.sparse_coo": lambda: conv2d(draw(*X).to_sparse(), weight(*W)),
    "weight is of type list": lambda: conv2d(draw(*X), weight(*W).tolist()),  # type: ignore[arg-type]
    "epilogue.bias is of type": lambda: conv2d(draw(*X), weight(*W), epilogue=Epilogue(bias=draw(8).cpu().numpy())),  # type: ignore[arg-type]
    "out is of type": lambda: conv2d(draw(*X), weight(*W), out=draw(1, 2, 2, 8).cpu().numpy()),  # type: ignore[arg-type]
    "groups is 0": lambda: conv2d(draw(*X), weight(*W), groups=0),
    "epilogue.shuffle is 0": lambda: conv2d(draw(*X), weight(*W), epilogue=Epilogue(shuffle=0)),
    "x is 0 x 4 pixels": lambda: conv2d(draw(*X)[:, :0], weight(*W), padding=(2, 2, 2, 2)),
    "x is 2 x 4 pixels": lambda: conv2d(draw(1, 2, 4, 16), weight(*W)),
    "weight is of shape": lambda: conv2d(draw(*X), weight(8, 16)),
    "weight is torch.float64": lambda: conv2d(draw(*X), weight(*W).double()),
    "weight is on meta": lambda: conv2d(draw(*X), weight(*W).to("meta")),
    "groups is 3": lambda: conv2d(draw(*X), weight(*W), groups=3),
    "stride": lambda: conv2d(draw(*X), weight(*W), stride=(0, 1)),
    "epilogue.bias is": lambda: conv2d(draw(*X), weight(*W), epilogue=Epilogue(bias=draw(7))),
    "epilogue.slopes is missing": lambda: conv2d(draw(*X), weight(*W), epilogue=Epilogue(activation="prelu")),
    "epilogue.activation is swish": lambda: conv2d(draw(*X), weight(*W), epilogue=Epilogue(activation="swish")),
    "epilogue.shuffle is 3": lambda: conv2d(draw(*X), weight(*W), epilogue=Epilogue(shuffle=3)),
    "epilogue.out_dtype is torch.int32": lambda: conv2d(draw(*X), weight(*W), epilogue=Epilogue(out_dtype=torch.int32)),
    "epilogue.out_dtype is torch.float32 for levels": lambda: conv2d(
        draw(*X), weight(*W), epilogue=Epilogue(levels=True)
    ),
    "epilogue.flag is torch.int64 of shape": lambda: conv2d(
        draw(*X), weight(*W), epilogue=Epilogue(out_dtype=torch.uint8, levels=True, flag=torch.zeros(1).long())
    ),
    "epilogue.flag is given for 2 x 3 pixels": lambda: conv2d(
        draw(1, 4, 5, 16),
        weight(3, 16, 3, 3),
        epilogue=Epilogue(out_dtype=torch.uint8, levels=True, flag=torch.zeros(1, dtype=torch.int32)),
    ),
    "epilogue.flag is .* without levels": lambda: conv2d(
        draw(*X), weight(*W), epilogue=Epilogue(flag=torch.zeros(1, dtype=torch.int32))
    ),
    "epilogue.channel_offset is 2": lambda: conv2d(draw(*X), weight(*W), epilogue=Epilogue(channel_offset=2)),
    "epilogue.residuals is 3": lambda: conv2d(
        draw(*X), weight(*W), epilogue=Epilogue(residuals=(Residual(draw(1, 2, 2, 8)),) * 3)
    ),
    r"epilogue.residuals\[0\] is": lambda: conv2d(
        draw(*X), weight(*W), epilogue=Epilogue(residuals=(Residual(draw(1, 4, 4, 8)),))
    ),
    "prologue.scale is": lambda: conv2d(draw(*X), weight(*W), prologue=Prologue(scale=draw(2, 16), shift=draw(2, 16))),
    "out is of shape": lambda: conv2d(draw(*X), weight(*W), out=draw(1, 2, 2, 7)),
    "out is torch.float32": lambda: conv2d(
        draw(*X), weight(*W), epilogue=Epilogue(out_dtype=torch.uint8), out=draw(1, 2, 2, 8)
    ),
}


@pytest.mark.parametrize("named", REFUSED)
def test_bad_input_is_named_before_any_launch(named, monkeypatch):
    def launched(*_: object) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr("tilefuse.kernels.convolve._convolve", launched)
    with pytest.raises(BackendError, match=named + ".*(accepted|no size may be zero)"):
        REFUSED[named]()


def test_a_machine_without_a_gpu_is_told_why(monkeypatch):
    monkeypatch.setattr("tilefuse.kernels.toolchain.interpreted", lambda: False)
    x = draw(1, 3, 3, 2).cpu()
    with pytest.raises(BackendError, match="tensor x: the kernels need a CUDA device, not cpu"):
        conv2d(x, weight(4, 2, 1, 1).cpu())


def test_the_operator_is_one_that_torch_can_trace():
    """The fake runs under torch.export: the launch is one node of the graph."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = pack_conv2d(weight(8, 3, 3, 3), padding=SAME)
            self.weight = torch.nn.Parameter(self.layer.weight, requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return run_layer(x, replace(self.layer, weight=self.weight), epilogue=Epilogue(activation="relu"))

    net, x = Net(), draw(1, 5, 6, 3)
    program = torch.export.export(net, (x,))
    assert "tilefuse.convolve" in str(program.graph)
    assert torch.equal(program.module()(x), net(x))
