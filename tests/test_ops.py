"""Every op's `apply` against torch's own layers or a reference written out, at odd sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.ops import (
    Activation,
    AdaptivePool2d,
    BatchNorm,
    Binary,
    Clamp,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Fused,
    GroupNorm,
    Linear,
    Mean,
    Pad,
    PadMode,
    PixelShuffle,
    PixelUnshuffle,
    Pool2d,
    PRelu,
    Reshape,
    Sides,
    Slice,
    Unary,
)

Compare = Callable[..., None]
SIZES = [(1, 1), (1, 17), (2, 3), (3, 2), (17, 63)]


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def zero_padded(x: Tensor, sides: Sides, value: float = 0.0) -> Tensor:
    """Pad by writing into a larger tensor, then crop: nothing shared with F.pad."""
    top, left, bottom, right = sides
    n, c, h, w = x.shape
    grow = [max(side, 0) for side in sides]
    out = torch.full((n, c, h + grow[0] + grow[2], w + grow[1] + grow[3]), value)
    out[:, :, grow[0] : grow[0] + h, grow[1] : grow[1] + w] = x
    rows = slice(max(-top, 0), out.shape[2] - max(-bottom, 0))
    return out[:, :, rows, max(-left, 0) : out.shape[3] - max(-right, 0)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("padding", "stride", "dilation", "groups"),
    [
        ((1, 1, 1, 1), (1, 1), (1, 1), 1),
        ((2, 2, 2, 2), (1, 1), (2, 2), 1),
        ((0, 1, 2, 3), (2, 1), (1, 1), 2),
        ((3, 2, 3, 1), (3, 2), (2, 1), 4),
    ],
)
def test_convolution_pads_each_side(
    size: tuple[int, int], padding: Sides, stride: Any, dilation: Any, groups: int, assert_close: Compare
) -> None:
    x, weight, bias = image(2, 4, *size), image(8, 4 // groups, 3, 2, seed=1), image(8, seed=2)
    padded = zero_padded(x, padding)
    if any(n < d * (k - 1) + 1 for n, d, k in zip(padded.shape[2:], dilation, (3, 2), strict=True)):
        pytest.skip("smaller than the kernel")
    expected = F.conv2d(padded, weight, bias, stride, 0, dilation, groups)
    op = Conv2d(stride, padding, dilation, groups)
    assert_close(op.apply(x, weight, bias), expected)
    assert_close(op.apply(x, weight), expected - bias.view(1, -1, 1, 1))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_convolution_padding_modes_are_those_of_the_layer(mode: PadMode, assert_close: Compare) -> None:
    layer = nn.Conv2d(3, 5, 5, padding=2, padding_mode=mode)
    x = image(1, 3, 7, 17)
    op = Conv2d(padding=(2, 2, 2, 2), padding_mode=mode)
    assert_close(op.apply(x, layer.weight, layer.bias), layer(x))


def test_negative_padding_crops(assert_close: Compare) -> None:
    x, weight = image(1, 3, 9, 9), image(4, 3, 3, 3, seed=1)
    for sides in ((-1, -1, -1, -1), (-1, 2, 0, -3)):
        assert_close(Conv2d(padding=sides).apply(x, weight), F.conv2d(zero_padded(x, sides), weight))
    weight = image(3, 4, 3, 3, seed=1)
    expected = zero_padded(F.conv_transpose2d(x, weight, None, 2), (1, 1, 1, 1))
    assert_close(ConvTranspose2d((2, 2), (-1, -1, -1, -1)).apply(x, weight), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("stride", "padding", "extra", "dilation", "groups"),
    [
        ((2, 2), (1, 1, 1, 1), (1, 1), (1, 1), 1),
        ((3, 2), (0, 1, 2, 0), (0, 1), (1, 2), 2),
        ((2, 2), (0, 0, 0, 0), (5, 3), (1, 1), 1),
        ((1, 1), (1, 0, 0, 1), (4, 2), (3, 1), 4),
    ],
)
def test_transposed_convolution_is_the_sum_of_its_stamps(
    size: tuple[int, int], stride: Any, padding: Sides, extra: Any, dilation: Any, groups: int, assert_close: Compare
) -> None:
    x, weight, bias = image(2, 4, *size), image(4, 8 // groups, 3, 2, seed=1), image(8, seed=2)
    height, width = (
        (n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip(size, stride, dilation, (3, 2), extra, strict=True)
    )
    full = torch.zeros(2, 8, height, width)
    inside, outside = 4 // groups, 8 // groups
    for y, col in itertools.product(range(size[0]), range(size[1])):
        for ky, kx in itertools.product(range(3), range(2)):
            for g in range(groups):
                stamp = x[:, g * inside : (g + 1) * inside, y, col] @ weight[g * inside : (g + 1) * inside, :, ky, kx]
                at = (y * stride[0] + ky * dilation[0], col * stride[1] + kx * dilation[1])
                full[:, g * outside : (g + 1) * outside, at[0], at[1]] += stamp
    top, left, bottom, right = padding
    expected = full[:, :, top : height - bottom, left : width - right] + bias.view(1, -1, 1, 1)
    op = ConvTranspose2d(stride, padding, extra, dilation, groups)
    assert_close(op.apply(x, weight, bias), expected, max_abs=2e-5)


def test_linear_follows_gemm(assert_close: Compare) -> None:
    x, weight, bias = image(3, 5), image(7, 5, seed=1), image(7, seed=2)
    assert_close(Linear().apply(x, weight, bias), F.linear(x, weight, bias))
    op = Linear(0.5, 2.0, transpose_input=True, transpose_weight=False)
    assert_close(op.apply(x.T, weight.T, bias), 0.5 * (x @ weight.T) + 2 * bias)


def pooled(x: Tensor, op: Pool2d) -> Tensor:
    """Pool window by window, as torch and ONNX define it."""
    top, left, bottom, right = op.padding
    spans = [d * (k - 1) + 1 for d, k in zip(op.dilation, op.kernel, strict=True)]
    outs = []
    for size, before, after, span, stride in zip(
        x.shape[2:], (top, left), (bottom, right), spans, op.stride, strict=True
    ):
        steps = size + before + after - span
        out = (-(-steps // stride) if op.ceil_mode else steps // stride) + 1
        outs.append(out - 1 if op.ceil_mode and (out - 1) * stride >= size + before else out)
    result = torch.empty(*x.shape[:2], *outs)
    for i, j in itertools.product(range(outs[0]), range(outs[1])):
        rows = [i * op.stride[0] - top + k * op.dilation[0] for k in range(op.kernel[0])]
        columns = [j * op.stride[1] - left + k * op.dilation[1] for k in range(op.kernel[1])]
        inside = [(y, c) for y in rows for c in columns if 0 <= y < x.shape[2] and 0 <= c < x.shape[3]]
        values = torch.stack([x[:, :, y, c] for y, c in inside], -1)
        if op.kind == "max":
            result[:, :, i, j] = values.amax(-1)
            continue
        counted = [y for y in rows if y < x.shape[2] + bottom], [c for c in columns if c < x.shape[3] + right]
        share = len(counted[0]) * len(counted[1]) if op.count_include_pad else len(inside)
        result[:, :, i, j] = values.sum(-1) / share
    return result


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("counted", [True, False])
def test_pooling_windows(kind: Literal["max", "avg"], ceil_mode: bool, counted: bool, assert_close: Compare) -> None:
    configurations = itertools.product(
        ((2, 2), (3, 2)), ((1, 1), (2, 3)), ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 1, 0), (1, 0, 0, 1)), ((1, 1), (2, 1))
    )
    ran = 0
    for (kernel, stride, padding, dilation), size in itertools.product(
        configurations, ((2, 3), (3, 3), (5, 4), (7, 17))
    ):
        op = Pool2d(kind, kernel, stride, padding, dilation, ceil_mode, counted)
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        if any(n + a + b < s for n, a, b, s in zip(size, padding[:2], padding[2:], spans, strict=True)):
            continue
        x = image(2, 3, *size)
        assert_close(op.apply(x), pooled(x, op), what=f"{op} at {size}")
        ran += 1
    assert ran > 100


@pytest.mark.parametrize("size", SIZES)
def test_adaptive_pooling_and_mean(size: tuple[int, int], assert_close: Compare) -> None:
    x = image(2, 3, *size)
    assert_close(AdaptivePool2d("avg", (1, 1)).apply(x), x.flatten(2).mean(2).view(2, 3, 1, 1))
    assert_close(AdaptivePool2d("max", (1, 1)).apply(x), x.flatten(2).amax(2).view(2, 3, 1, 1))
    assert_close(Mean((2, 3)).apply(x), x.flatten(2).mean(2).view(2, 3, 1, 1))
    assert_close(Mean((-1,), keepdim=False).apply(x), x.sum(3) / size[1])


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_shuffles_move_one_element_at_a_time(factor: int, assert_close: Compare) -> None:
    x = image(2, 2 * factor**2, 3, 5)
    crd, dcr = PixelShuffle(factor).apply(x), PixelShuffle(factor, "dcr").apply(x)
    for c, i, j in itertools.product(range(2), range(factor), range(factor)):
        assert_close(crd[:, c, i::factor, j::factor], x[:, c * factor**2 + i * factor + j])
        assert_close(dcr[:, c, i::factor, j::factor], x[:, (i * factor + j) * 2 + c])
    assert_close(PixelUnshuffle(factor).apply(crd), x)
    assert_close(PixelUnshuffle(factor, "dcr").apply(dcr), x)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("sides", [(1, 2, 3, 0), (0, 0, 0, 0), (-1, -2, 0, -1), (1, -2, -3, 2)])
def test_padding_repeats_the_right_pixels(mode: PadMode, sides: Sides, assert_close: Compare) -> None:
    x = image(1, 2, 9, 8)
    top, left, bottom, right = sides
    out = Pad(sides, mode, 0.5).apply(x)
    if mode == "constant":
        assert_close(out, zero_padded(x, sides, 0.5))
        return

    def source(size: int, before: int, after: int) -> Tensor:
        position = torch.arange(-before, size + after)
        if mode == "replicate":
            return position.clamp(0, size - 1)
        if mode == "reflect":
            return (size - 1 - (position.abs() - (size - 1)).abs()).abs()
        first, last = max(-before, 0), size - max(-after, 0)
        return (position - first) % (last - first) + first

    expected = x.index_select(2, source(9, top, bottom)).index_select(3, source(8, left, right))
    assert_close(out, expected)


def test_circular_padding_of_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        Pad((1, 0, -3, 0), "circular").apply(image(1, 1, 3, 3))


def test_layout(assert_close: Compare) -> None:
    x = image(2, 6, 3, 5)
    assert_close(Concat(1).apply(x, x[:, :1]), torch.cat([x, x[:, :1]], 1))
    for dim, start, stop, step in ((1, 0, 3, 1), (1, 1, None, 2), (-1, -3, -1, 1), (2, 0, 99, 2)):
        index = torch.arange(x.shape[dim])[start:stop:step]
        assert_close(Slice(dim, start, stop, step).apply(x), x.index_select(dim, index))
    assert_close(Reshape((0, -1)).apply(x), x.flatten(1))
    assert_close(Reshape((1, 0, 2, 3, 5)).apply(x), x.reshape(1, 6, 2, 3, 5))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_norm(size: tuple[int, int], groups: int, assert_close: Compare) -> None:
    x, weight, bias = image(2, 6, *size), image(6, seed=1), image(6, seed=2)
    result = GroupNorm(groups, 1e-3).apply(x, weight, bias)
    if size == (1, 1) and groups == 6:
        # torch refuses one value a group; normalised it is 0, so only the bias is left.
        assert_close(result, bias.view(1, 6, 1, 1).expand(2, 6, 1, 1))
        return
    assert_close(result, F.group_norm(x, groups, weight, bias, 1e-3))
    if groups == 6:
        assert_close(GroupNorm(0, 1e-3).apply(x, weight, bias), result)
        assert_close(result, F.instance_norm(x, weight=weight, bias=bias, eps=1e-3))


def test_batch_norm(assert_close: Compare) -> None:
    layer = nn.BatchNorm2d(5, eps=1e-3).eval()
    layer.running_mean, layer.running_var = image(5), image(5, seed=1).abs()
    x = image(2, 5, 3, 2)
    statistics = (layer.running_mean, layer.running_var)
    assert_close(BatchNorm(1e-3).apply(x, layer.weight, layer.bias, *statistics), layer(x))


ACTIVATIONS: list[tuple[Activation, nn.Module]] = [
    (Activation("relu"), nn.ReLU()),
    (Activation("leaky_relu", 0.2), nn.LeakyReLU(0.2)),
    (Activation("elu", 0.7), nn.ELU(0.7)),
    (Activation("gelu"), nn.GELU()),
    (Activation("gelu_tanh"), nn.GELU("tanh")),
    (Activation("silu"), nn.SiLU()),
    (Activation("hardswish"), nn.Hardswish()),
    (Activation("hardsigmoid"), nn.Hardsigmoid()),
    (Activation("tanh"), nn.Tanh()),
    (Activation("sigmoid"), nn.Sigmoid()),
    (Activation("softplus"), nn.Softplus()),
    (Activation("mish"), nn.Mish()),
]


@pytest.mark.parametrize(("op", "layer"), ACTIVATIONS, ids=[op.kind for op, _ in ACTIVATIONS])
def test_activations(op: Activation, layer: nn.Module, assert_close: Compare) -> None:
    x = 4 * image(2, 3, 17, 5)
    assert_close(op.apply(x), layer(x))


def test_prelu_broadcasts(assert_close: Compare) -> None:
    x = image(2, 3, 5, 7)
    for slope in (image(3, 1, 1, seed=1), image(1, 1, 1, seed=1), image(1, seed=1), image(5, 7, seed=1)):
        assert_close(PRelu().apply(x, slope), x.clamp(min=0) + slope * x.clamp(max=0))


def test_arithmetic(assert_close: Compare) -> None:
    x, y = image(2, 3, 5, 7), image(3, 1, 7, seed=1)
    positive = x.abs() + 0.1
    for binary, expected in (
        ("add", x + y),
        ("sub", x - y),
        ("mul", x * y),
        ("div", x / y),
        ("max", torch.where(x > y, x, y)),
        ("min", torch.where(x < y, x, y)),
    ):
        assert_close(Binary(binary).apply(x, y), expected, what=binary)
    for unary, expected in (
        ("abs", torch.where(x < 0, -x, x)),
        ("neg", 0 - x),
        ("exp", torch.e**x),
        ("square", x * x),
        ("erf", torch.special.erf(x)),
    ):
        assert_close(Unary(unary).apply(x), expected, what=unary)
    for unary, expected in (
        ("log", torch.log2(positive) / torch.log2(torch.tensor(torch.e))),
        ("sqrt", positive**0.5),
        ("rsqrt", positive**-0.5),
        ("reciprocal", 1 / positive),
    ):
        assert_close(Unary(unary).apply(positive), expected, max_abs=1e-4, what=unary)
    for low, high in ((0.0, 0.5), (None, 0.5), (-0.5, None), (None, None)):
        expected = x if low is None else torch.where(x < low, torch.tensor(low), x)
        expected = expected if high is None else torch.where(expected > high, torch.tensor(high), expected)
        assert_close(Clamp(low, high).apply(x), expected)


def test_fused_runs_its_members_in_turn(assert_close: Compare) -> None:
    x, weight, bias, slope, residual = image(1, 3, 5, 5), image(4, 3, 3, 3), image(4), image(4, 1, 1), image(1, 4, 5, 5)
    op = Fused((Conv2d(padding=(1, 1, 1, 1)), PRelu(), Binary("add"), PixelShuffle(2)), (3, 1, 1, 0))
    expected = F.pixel_shuffle(F.prelu(F.conv2d(x, weight, bias, padding=1), slope.flatten()) + residual, 2)
    assert_close(op.apply(x, weight, bias, slope, residual), expected)


def test_ops_infer_shapes_without_data() -> None:
    x = torch.empty(2, 6, 17, 13, device="meta")
    for op in (
        Pool2d("avg", (3, 3), (2, 2), (0, 1, 1, 0), (2, 1), ceil_mode=True, count_include_pad=False),
        Pool2d("max", (3, 3), (2, 2), (0, 1, 1, 0), ceil_mode=True),
        GroupNorm(2),
        PixelUnshuffle(1, "dcr"),
    ):
        extras = (torch.empty(6, device="meta"),) * 2 if isinstance(op, GroupNorm) else ()
        real = op.apply(image(2, 6, 17, 13), *(torch.ones(6) for _ in extras))
        assert op.apply(x, *extras).shape == real.shape
