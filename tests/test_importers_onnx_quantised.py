"""Quantised ONNX files (QDQ): captured, bit for bit what ONNX Runtime's integers give, and tiled without a seam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tilefuse
from tilefuse.capture import from_onnx
from tilefuse.errors import ModelError
from tilefuse.footprint import footprint
from tilefuse.ops import Conv2d, ConvTranspose2d, Round

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

BODY = """
    <ir_version: 9, opset_import: ["" : 20]>
    net (float[batch, 3, height, width] image) => (float[batch, 3, sized_height, sized_width] image_out) {{
        {nodes}
    }}
"""
# A convolution, a float activation, a transposed convolution; then the same with what each test changes.
NODES = """
        q0 = QuantizeLinear(image, s0, z0)
        d0 = DequantizeLinear(q0, s0, z0)
        w1 = DequantizeLinear <axis = 0> (w1_int8, w1_scale, w1_zero)
        b1 = DequantizeLinear <axis = 0> (b1_int32, b1_scale)
        c1 = Conv <pads = [1, 1, 1, 1]> (d0, w1, b1)
        q1 = QuantizeLinear(c1, s1, z1)
        d1 = DequantizeLinear(q1, s1, z1)
        a1 = LeakyRelu <alpha = 0.2> (d1)
        q2 = QuantizeLinear(a1, s1, z1)
        d2 = DequantizeLinear(q2, s1, z1)
        w2 = DequantizeLinear <axis = 1> (w2_int8, w2_scale, w2_zero)
        image_out = ConvTranspose <strides = [2, 2]> (d2, w2)
"""


def network(nodes: str = NODES, **changed: np.ndarray[Any, Any]) -> Any:
    """Make a QDQ network of 3 -> 8 -> 3 channels that doubles its image."""
    rng = np.random.default_rng(0)
    scale1 = rng.uniform(1e-3, 2e-3, 8).astype(np.float32)
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "s0": np.float32(1 / 255),
        "z0": np.array(-128, np.int8),
        "w1_int8": rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "w1_scale": scale1,
        "w1_zero": np.zeros(8, np.int8),
        "b1_int32": rng.integers(-3000, 3000, 8).astype(np.int32),
        "b1_scale": np.float32(1 / 255) * scale1,
        "s1": np.float32(0.0137),
        "z1": np.array(5, np.int8),
        "w2_int8": rng.integers(-127, 128, (8, 3, 2, 2)).astype(np.int8),
        "w2_scale": rng.uniform(1e-3, 2e-3, 3).astype(np.float32),
        "w2_zero": np.zeros(3, np.int8),
    }
    model = onnx.parser.parse_model(BODY.format(nodes=nodes))
    read = {name for node in model.graph.node for name in node.input}
    for name, array in (tensors | changed).items():
        if name in read:
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


def saved(model: Any, folder: Path) -> Path:
    path = folder / "net.onnx"
    onnx.save(model, path)
    return path


def test_layers_run_on_whole_numbers() -> None:
    graph = from_onnx(network())
    layers = [node for node in graph.nodes if isinstance(node.op, Conv2d | ConvTranspose2d)]
    assert len(layers) == 2
    for node in layers:
        for name in node.inputs[1:]:
            assert torch.equal(graph.weights[name], graph.weights[name].round())
        (reader,) = graph.consumers()[node.output]
        assert isinstance(reader.op, Round)


def test_the_result_is_that_of_integer_arithmetic() -> None:
    model, image = network(), np.random.default_rng(1).random((1, 3, 37, 41), np.float32)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": image})
    (actual,) = from_onnx(model).evaluate(torch.from_numpy(image))
    assert np.abs(actual.numpy() - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("backend", ["torch_eager", "onnxruntime", "openvino"])
def test_tiles_equal_the_whole_bit_for_bit(backend: str, tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    image = np.random.default_rng(2).random((45, 51, 3), np.float32)
    whole = tilefuse.load(path, backend=backend, tile=0)(image)
    tiled = tilefuse.load(path, backend=backend, tile=12, schedule="windows")
    assert tiled.footprint.halo == 1
    assert tiled.footprint.global_ops == ()
    assert tiled.plan(45, 51).windows > 4
    assert np.array_equal(tiled(image), whole)
    reference = tilefuse.load(path, backend="torch_eager", tile=0)(image)
    assert np.abs(whole - reference).max() <= 1e-5 * np.abs(reference).max()


def test_backends_without_rounding_say_so(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    with pytest.raises(tilefuse.BackendError, match="round"):
        tilefuse.load(saved(network(), tmp_path), backend="ncnn")(np.zeros((9, 9, 3), np.float32))


@pytest.mark.parametrize(
    ("nodes", "changed"),
    [
        # Weights that are not quantised: the sum is one of fractions.
        (
            NODES.replace("w1 = DequantizeLinear <axis = 0> (w1_int8, w1_scale, w1_zero)", "w1 = Identity(w1_float)"),
            {"w1_float": np.random.default_rng(3).normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32)},
        ),
        # Whole numbers of 16 bits, whose sum passes what float32 holds.
        (NODES, {"w1_int8": np.full((8, 3, 3, 3), 32000, np.int16), "w1_zero": np.zeros(8, np.int16)}),
        # The same below a zero point that leaves negative levels only.
        (
            NODES,
            {
                "w1_int8": np.full((8, 3, 3, 3), 32000, np.int16),
                "w1_zero": np.zeros(8, np.int16),
                "z0": np.array(127, np.int8),
            },
        ),
        # A bias that takes the sum there.
        (NODES, {"b1_int32": np.full(8, 2**24, np.int32)}),
        # A scale for each channel that comes in, which no product behind the sum can stand for.
        (
            NODES.replace("w1 = DequantizeLinear <axis = 0>", "w1 = DequantizeLinear <axis = 1>"),
            {"w1_scale": np.float32([1e-3, 2e-3, 3e-3]), "w1_zero": np.zeros(3, np.int8)},
        ),
    ],
)
def test_rounding_a_sum_of_fractions_stops_tiling(nodes: str, changed: dict[str, Any], tmp_path: Path) -> None:
    path = saved(network(nodes, **changed), tmp_path)
    engine = tilefuse.load(path, backend="torch_eager")
    assert any("rounding after a sum of fractions" in reason for reason in engine.footprint.global_ops)
    assert engine.plan(45, 51).windows == 1
    assert "rounding after a sum" in str(engine.plan(45, 51))


def test_a_bias_that_is_not_quantised_is_added_after() -> None:
    nodes = NODES.replace("b1 = DequantizeLinear <axis = 0> (b1_int32, b1_scale)", "b1 = Identity(b1_float)")
    bias = np.linspace(-0.5, 0.5, 8).astype(np.float32)
    graph = from_onnx(network(nodes, b1_float=bias))
    assert footprint(graph).global_ops == ()
    image = torch.rand(1, 3, 8, 9)
    (without,) = from_onnx(network(nodes, b1_float=0 * bias)).evaluate(image)
    assert not torch.equal(graph.evaluate(image)[0], without)


@pytest.mark.parametrize(
    ("nodes", "changed", "word"),
    [
        (NODES, {"s0": np.full(3, 0.01, np.float32)}, "scale for each channel"),
        (NODES, {"s0": np.float32(0)}, "positive"),
        (NODES.replace("d0 = DequantizeLinear(q0, s0, z0)", "d0 = DequantizeLinear(q0, s0, z1)"), {}, "zero point"),
        (
            NODES.replace(
                "d0 = DequantizeLinear(q0, s0, z0)",
                "f0 = MaxPool <kernel_shape = [1, 1]> (q0)\nd0 = Cast <to = 1> (f0)",
            ),
            {},
            "DequantizeLinear only",
        ),
        (NODES.replace("(q0, s0, z0)", "<block_size = 1> (q0, s0, z0)"), {}, "block_size"),
    ],
)
def test_what_is_not_supported_is_named(nodes: str, changed: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        from_onnx(network(nodes, **changed))
