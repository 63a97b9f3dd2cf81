"""ONNX files become graphs: what exporters write, what has no fixed size, and what must be refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.errors import ModelError
from tilefuse.importers.onnx import from_onnx
from tilefuse.ops import GroupNorm, PixelShuffle, PixelUnshuffle

onnx = pytest.importorskip("onnx")

Compare = Callable[..., None]
SIZES = [(2, 2), (4, 6), (12, 8), (18, 34)]


class Calls(nn.Module):
    """A module around a function of the input and some layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def shuffled_by_hand(x: Tensor, layer: nn.Module) -> Tensor:
    y = layer(x)
    n, c, h, w = y.shape
    return y.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


def shuffled_channels(x: Tensor, layer: nn.Module) -> Tensor:
    n, _, h, w = x.shape
    return layer(x).view(n, 2, 4, h, w).transpose(1, 2).reshape(n, 8, h, w)


def doubled(x: Tensor, layer: nn.Module) -> Tensor:
    return F.interpolate(layer(x), size=(x.shape[2] * 2, x.shape[3] * 2), mode="bilinear")


def gated(x: Tensor, squeeze: nn.Module, excite: nn.Module) -> Tensor:
    return x * torch.sigmoid(excite(F.relu(squeeze(x.mean((2, 3)))))).view(x.shape[0], 3, 1, 1)


def pooled_gate(x: Tensor, squeeze: nn.Module, excite: nn.Module) -> Tensor:
    return x * torch.sigmoid(excite(F.relu(squeeze(F.adaptive_avg_pool2d(x, 1)))))


NETWORKS: dict[str, nn.Module] = {
    "pixel shuffle": nn.Sequential(conv(3, 12), nn.PixelShuffle(2)),
    "pixel shuffle by hand": Calls(shuffled_by_hand, conv(3, 12)),
    "pixel unshuffle": nn.Sequential(nn.PixelUnshuffle(2), conv(12, 3)),
    "channel shuffle": Calls(shuffled_channels, conv(3, 8)),
    "repeated channels": Calls(lambda x, a: a(x) + torch.repeat_interleave(x, 4, 1), conv(3, 12)),
    "nearest": Calls(lambda x, a: a(F.interpolate(x, scale_factor=3, mode="nearest")), conv(3, 4)),
    "bilinear": Calls(lambda x, a: F.interpolate(a(x), scale_factor=1.5, mode="bilinear"), conv(3, 4)),
    "bicubic": Calls(lambda x, a: F.interpolate(a(x), scale_factor=0.5, mode="bicubic"), conv(3, 4)),
    "aligned": Calls(lambda x, a: F.interpolate(a(x), scale_factor=2, mode="bicubic", align_corners=True), conv(3, 4)),
    "size from shape": Calls(doubled, conv(3, 4)),
    "prelu": nn.Sequential(conv(3, 4), nn.PReLU(4), conv(4, 4), nn.PReLU()),
    "instance norm": nn.Sequential(conv(3, 4), nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm2d(4)),
    "group norm": nn.Sequential(conv(3, 8), nn.GroupNorm(4, 8)),
    "batch norm": nn.Sequential(conv(3, 8, bias=False), nn.ReLU(), nn.BatchNorm2d(8), nn.SiLU()),
    "activations": nn.Sequential(
        nn.GELU(), nn.GELU("tanh"), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.ELU(0.7), nn.Softplus(), nn.ReLU6()
    ),
    "gate by linear layers": Calls(gated, nn.Linear(3, 2), nn.Linear(2, 3)),
    "gate by convolutions": Calls(
        lambda x, a, b: x * torch.sigmoid(b(F.relu(a(F.adaptive_avg_pool2d(x, 1))))),
        nn.Conv2d(3, 2, 1),
        nn.Conv2d(2, 3, 1),
    ),
    "chunks": Calls(lambda x, a: torch.cat([part * 2 for part in a(x).chunk(3, 1)], 1), conv(3, 9)),
    "crop of a reflection": Calls(lambda x, a: a(F.pad(x, (1, 1, 1, 1), mode="reflect"))[:, :, 1:-1, 2:], conv(3, 3)),
    "phases": Calls(lambda x, a: a(torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1)), conv(6, 3)),
    "pools": nn.Sequential(
        nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Upsample(scale_factor=2)
    ),
    "transposed": nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1), nn.LeakyReLU(0.2)),
    "arithmetic": Calls(lambda x, a: a(x).clamp(0, 1) / 2 + x * 0.2 - (1 - x) ** 2, conv(3, 3)),
    "circular": nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
    "replicate": nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate"),
    "grouped": nn.Conv2d(3, 6, 3, stride=2, dilation=2, padding=2, groups=3),
}
OPEN = {"x": {0: "n", 2: "h", 3: "w"}}


def exported(module: nn.Module, exporter: str, *, fixed: bool = False) -> Any:
    """Export as ONNX with open batch, height and width."""
    module.eval()
    x = torch.rand(2, 3, 8, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
            return torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=(sizes,), verbose=False).model_proto
        stream = io.BytesIO()
        options = {} if fixed else {"dynamic_axes": OPEN}
        torch.onnx.export(
            module, (x,), stream, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"], **options
        )
    return onnx.load_from_string(stream.getvalue())


@pytest.mark.parametrize("name", NETWORKS)
def test_exported_networks_run_at_any_size(name: str, assert_close: Compare) -> None:
    check_any_size(name, "torchscript", assert_close)


@pytest.mark.slow
def test_networks_of_the_newer_exporter_run_at_any_size(assert_close: Compare) -> None:
    pytest.importorskip("onnxscript")
    for name in NETWORKS:
        check_any_size(name, "dynamo", assert_close)


def check_any_size(name: str, exporter: str, assert_close: Compare) -> None:
    torch.manual_seed(0)
    module = NETWORKS[name]
    graph = from_onnx(exported(module, exporter))
    assert graph.inputs[0].shape == (None, 3, None, None)
    compared = 0
    for batch, size in enumerate(SIZES, 1):
        x = torch.rand(batch, 3, *size)
        try:
            expected = module(x)
        except RuntimeError:
            continue  # smaller than the network takes
        assert_close(graph.evaluate(x)[0], expected, what=f"{name} at {size}")
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", NETWORKS)
def test_exported_networks_of_fixed_size(name: str, assert_close: Compare) -> None:
    torch.manual_seed(0)
    module = NETWORKS[name]
    graph = from_onnx(exported(module, "torchscript", fixed=True))
    assert graph.inputs[0].shape == (2, 3, 8, 12)
    x = torch.rand(2, 3, 8, 12)
    assert_close(graph.evaluate(x)[0], module(x), what=name)
    with pytest.raises(ModelError, match="must be 2x3x8x12"):
        graph.evaluate(torch.rand(1, 3, 8, 12))


def test_chains_of_reshapes_become_the_op_they_stand_for() -> None:
    def ops(name: str) -> list[object]:
        return [node.op for node in from_onnx(exported(NETWORKS[name], "torchscript")).nodes]

    assert PixelShuffle(2) in ops("pixel shuffle by hand")
    assert PixelUnshuffle(2) in ops("pixel unshuffle")
    assert GroupNorm(4) in ops("group norm")
    assert [op.name for op in ops("size from shape")] == ["conv2d", "resize"]
    assert "reshape" not in {op.name for op in ops("channel shuffle")}


def test_latent_generator(assert_close: Compare) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 32), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh())
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.rand(2, 8),), stream, dynamo=False, dynamic_axes={"x": {0: "n"}}, input_names=["x"]
        )
    graph = from_onnx(onnx.load_from_string(stream.getvalue()))
    z = torch.rand(5, 8)
    assert graph.inputs[0].shape == (None, 8)
    assert_close(graph.evaluate(z)[0], module(z))


def parsed(body: str, opset: int = 20, inputs: str = "float[n,4,h,w] x", **weights: Any) -> Any:
    """Build a model from ONNX's text form; `weights` are its initializers, whole numbers as int64."""
    imports = f'["" : {opset}, "com.example" : 1]'
    text = f"<ir_version: 8, opset_import: {imports}> g ({inputs}) => (float[a,b,c,d] y) {{ {body} }}"
    model = onnx.parser.parse_model(text.replace("'", '"'))
    for name, value in weights.items():
        array = np.asarray(value)
        typed = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(typed, name))
    return model


def run(model: Any, x: Tensor) -> Tensor:
    return from_onnx(model).evaluate(x)[0]


FOUR = {"s": [2.0] * 4, "b": [1.0] * 4, "m": [0.5] * 4, "v": [4.0] * 4}
TWICE = {"s": [1.0, 1.0, 2.0, 2.0]}
OLD_FORMS: list[tuple[str, int, dict[str, Any], Callable[[Tensor], Tensor]]] = [
    ("y = Clip <min=0.1, max=0.6> (x)", 9, {}, lambda x: x.clamp(0.1, 0.6)),
    ("y = Pad <mode='reflect', pads=[0,0,1,2,0,0,0,1]> (x)", 9, {}, lambda x: F.pad(x, (2, 1, 1, 0), "reflect")),
    ("y = Pad <pads=[0,0,1,2,0,0,-1,1], value=0.5> (x)", 10, {}, lambda x: F.pad(x, (2, 1, 1, -1), value=0.5)),
    ("y = Slice <axes=[1,2], starts=[1,-2], ends=[99,-1]> (x)", 9, {}, lambda x: x[:, 1:, -2:-1]),
    ("a = Unsqueeze <axes=[2]> (x) y = Squeeze <axes=[2]> (a)", 11, {}, lambda x: x),
    ("a, b = Split <axis=1, split=[1,3]> (x) y = Concat <axis=1> (b, a)", 11, {}, lambda x: x.roll(-1, 1)),
    ("y = ReduceMean <axes=[2,3]> (x)", 13, {}, lambda x: x.mean((2, 3), keepdim=True)),
    ("y = Dropout <ratio=0.5> (x)", 9, {}, lambda x: x),
    ("y = BatchNormalization (x, s, b, m, v)", 9, FOUR, lambda x: (x - 0.5) / (4 + 1e-5) ** 0.5 * 2 + 1),
    ("y = Upsample (x, s)", 9, TWICE, lambda x: F.interpolate(x, scale_factor=2, mode="nearest")),
    ("y = Resize (x, s)", 10, TWICE, lambda x: F.interpolate(x, scale_factor=2, mode="nearest")),
]


@pytest.mark.parametrize(("body", "opset", "weights", "expected"), OLD_FORMS, ids=[form[0] for form in OLD_FORMS])
def test_old_opsets(
    body: str, opset: int, weights: dict[str, Any], expected: Callable[[Tensor], Tensor], assert_close: Compare
) -> None:
    x = torch.rand(2, 4, 5, 3)
    assert_close(run(parsed(body, opset, **weights), x), expected(x))


BRANCHES = ", ".join(f"{s}_branch = {s} () => (float[1] {s}p) {{{s}p = Identity (k)}}" for s in ("then", "else"))
CROP = "coordinate_transformation_mode = 'tf_crop_and_resize'"
ALIGN = "coordinate_transformation_mode = 'align_corners'"
EMPTY = np.zeros(0, np.float32)
SHAPE = "s = Shape (x) m = Mod (s, k) o = Concat <axis = 0> (m, m)"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("y = Reshape (x, x)", {}, "Reshape.*shape is computed at run time"),
    ("y = com.example.Magic (x)", {}, "com.example::Magic"),
    ("a = Softmax (x) y = Sin (a)", {}, "Softmax, Sin"),
    (f"c = Equal (k, k) y = If (c) <{BRANCHES}>", {"k": [1.0]}, "If"),
    ("y = Resize <mode = 'linear', antialias = 1> (x, e, s)", {"s": [1.0, 1.0, 0.5, 0.5]}, "attribute antialias"),
    (f"y = Resize <{CROP}> (x, e, s)", TWICE, "tf_crop_and_resize"),
    (f"y = Resize <mode = 'linear', {ALIGN}> (x, e, s)", {"s": [1.0, 1.0, 1.5, 1.5]}, "align_corners"),
    ("y = Resize <nearest_mode = 'floor'> (x, e, s)", {"s": [1.0, 1.0, 0.6, 0.6]}, "nearest_mode = floor.*rounding"),
    ("y = Resize (x, e, s)", {"s": [1.0, 2.0, 1.0, 1.0]}, "only height and width"),
    ("y = Resize (x, e, s)", {"s": [2.0, 2.0]}, "Resize.*malformed"),
    ("y = Resize (x, e, e, t)", {"t": [1, 4, 9, 9]}, "Resize.*sizes"),
    ("y = Resize <axes = [2,3]> (x, e, e, t)", {"t": [-5, 7]}, "Resize.*sizes.*empty"),
    ("y = Transpose <perm = [0,1,3,2]> (x)", {}, r"Transpose.*\[n, 4, h, w\] to \[n, 4, w, h\]"),
    ("y = Pad (x, p)", {"p": [0, 1, 0, 0, 0, 0, 0, 0]}, "Pad.*pads"),
    (f"{SHAPE} y = Pad (x, o)", {"k": [7]}, "Pad.*depends on the size of the image"),
    ("y = Slice (x, f, l, d, t)", {"f": [9], "l": [-99], "d": [2], "t": [-1]}, "Slice.*steps"),
    ("y = MaxPool <kernel_shape = [3,3], strides = [2,2], auto_pad = 'SAME_UPPER'> (x)", {}, "auto_pad"),
    ("a, i = MaxPool <kernel_shape = [2,2]> (x) f = Cast <to = 1> (i) y = Add (a, f)", {}, "MaxPool.*Indices"),
    ("y = BatchNormalization <training_mode = 1> (x, s, b, m, v)", FOUR, "training_mode"),
    ("y = Pow (x, p)", {"p": 2.5}, "Pow.*2.5"),
    ("c = Greater (x, z) y = Where (c, x, z)", {"z": 0.0}, "Where"),
    ("y = Cast <to = 7> (x)", {}, "Cast.*attribute to = 7"),
    ("y = Conv (x, w)", {"w": np.ones((1, 3, 1, 1))}, "Conv.*channels"),
    ("y = Conv <kernel_shape = [2,2]> (x, w)", {"w": np.ones((1, 4, 1, 1))}, "kernel_shape"),
    ("y = Add (x, z)", {"z": np.inf}, "'z' holds NaN or infinite"),
    ("y = Add (x, z)", {"z": [1]}, "'z' is int64"),
    ("y = Add (x, nothing)", {}, "nothing"),
    ("y = Reshape <allowzero = 1> (x, z)", {"z": [0, 4]}, "allowzero"),
]


@pytest.mark.parametrize(("body", "weights", "named"), REFUSED, ids=[f"{case[2]}" for case in REFUSED])
def test_what_is_not_supported_is_named(body: str, weights: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        from_onnx(parsed(body, **({"e": EMPTY} | weights)))


def test_models_that_say_too_little_are_refused() -> None:
    with pytest.raises(ModelError, match="opset 8"):
        from_onnx(parsed("y = Relu (x)", opset=8))
    with pytest.raises(ModelError, match="UINT8"):
        from_onnx(parsed("y = Cast <to = 1> (x)", inputs="uint8[n,4,h,w] x"))
    with pytest.raises(ModelError, match="sequence_type"):
        from_onnx(parsed("y = Identity (z)", inputs="float[n] z, seq(float[n]) x"))
    model = parsed("y = Relu (x)")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="shape"):
        from_onnx(model)
    with pytest.raises(ModelError, match="no input 'z'"):
        from_onnx(parsed("y = Relu (x)"), {"z": np.zeros(1)})


def test_bound_inputs_disappear(assert_close: Compare) -> None:
    model = parsed("y = Reshape (x, s)", inputs="float[n,4,h,w] x, int64[4] s")
    with pytest.raises(ModelError, match="INT64"):
        from_onnx(model)
    graph = from_onnx(model, {"s": np.array([0, 2, -1, 1])})
    assert [spec.name for spec in graph.inputs] == ["x"]
    x = torch.rand(2, 4, 3, 5)
    assert_close(graph.evaluate(x)[0], x.reshape(2, 2, -1, 1))


def test_binding_an_input_replaces_its_default(assert_close: Compare) -> None:
    model = parsed("y = Mul (x, k)", inputs="float[n,4,h,w] x, float k", k=2.0)
    x = torch.rand(1, 4, 3, 5)
    assert_close(run(model, x), 2 * x)
    assert_close(from_onnx(model, {"k": np.float32(3)}).evaluate(x)[0], 3 * x)


def test_run_time_bounds_and_weights(assert_close: Compare) -> None:
    inputs = "float[n,4,h,w] x, float low, float[2,4,3,3] k"
    graph = from_onnx(parsed("a = Clip (x, low) y = Conv (a, k)", inputs=inputs))
    x, low, kernel = torch.randn(1, 4, 5, 5), torch.tensor(0.2), torch.randn(2, 4, 3, 3)
    assert_close(graph.evaluate(x, low, kernel)[0], F.conv2d(x.clamp(min=0.2), kernel))


def test_half_models_are_computed_in_single_precision(assert_close: Compare) -> None:
    model = parsed("y = Conv (x, k)", inputs="float16[n,4,h,w] x")
    kernel = np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "k"))
    model.graph.output[0].type.tensor_type.elem_type = 10
    graph = from_onnx(model)
    assert {weight.dtype for weight in graph.weights.values()} == {torch.float32}
    x = torch.rand(1, 4, 5, 5)
    assert_close(graph.evaluate(x)[0], F.conv2d(x, torch.from_numpy(kernel).float()))


def test_softplus_as_dynamo_writes_it(assert_close: Compare) -> None:
    body = "c = Greater (x, t) s = Softplus (x) y = Where (c, x, s)"
    x = 30 * torch.randn(1, 4, 5, 5)
    assert_close(run(parsed(body, t=20.0), x), F.softplus(x))
    with pytest.raises(ModelError, match="Where"):
        from_onnx(parsed(body, t=2.0))


def test_constants_and_repeated_outputs_may_be_returned(assert_close: Compare) -> None:
    text = """<ir_version: 8, opset_import: ["" : 20]>
        g (float[2] x) => (float[2] x2, float[2] x3, float[2] z) {
            x2 = Identity (x) x3 = Identity (x) z = Constant <value = float[2] {1.0, 2.0}> ()
        }"""
    x = torch.rand(2)
    first, second, constant = from_onnx(onnx.parser.parse_model(text)).evaluate(x)
    assert_close(first, x)
    assert_close(second, x)
    assert_close(constant, torch.tensor([1.0, 2.0]))
