"""Batch norms folded in written graphs, values renamed, and notes taken out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.exporting import onnx
from tilefuse.export.onnx_graph import fold_batch_norm, rename, tidy
from tilefuse.export.onnx_verify import ort_session

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'


def model_of(body: str, takes: str, gives: str = "", **weights: Any) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f"{HEADER} net (float[{takes}] x) => (float[{gives or takes}] y) {{ {body} }}")
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model


def statistics(channels: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    drawn = {name: rng.normal(size=channels).astype(np.float32) for name in ("scale", "bias", "mean")}
    return {**drawn, "variance": rng.uniform(0.5, 2, channels).astype(np.float32)}


def run(model: onnx.ModelProto, x: Any) -> Any:
    onnx.checker.check_model(model, full_check=True)
    return ort_session(model.SerializeToString(), optimise=False).run(None, {"x": x})[0]


NORM = "BatchNormalization<epsilon = 0.01>({}, scale, bias, mean, variance)"


def test_a_batch_norm_that_nothing_precedes_becomes_a_product_and_a_sum() -> None:
    model = model_of(f"r = Relu(x) y = {NORM.format('r')}", "batch, 3, height, width", **statistics(3))
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    expected = run(model, x)
    fold_batch_norm(model)
    assert [node.op_type for node in model.graph.node] == ["Relu", "Mul", "Add"]
    assert {tensor.name for tensor in model.graph.initializer}.isdisjoint({"scale", "bias", "mean", "variance"})
    assert np.abs(run(model, x) - expected).max() < 1e-5


def linear(channels: int, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    shape = np.array([-1, channels, 2, 2])
    weight, offset = rng.normal(size=(4 * channels, 5)), rng.normal(size=4 * channels)
    return {
        "weight": weight.astype(np.float32),
        "offset": offset.astype(np.float32),
        "shape": shape,
        **statistics(channels),
        **more,
    }


BODY = f"g = Gemm<transB = 1>(x, weight, offset) r = Reshape(g, shape) n = {NORM.format('r')} y = Relu(n)"


def test_a_batch_norm_behind_a_reshape_goes_into_the_linear_layer() -> None:
    model = model_of(BODY, "batch, 5", "batch, 3, 2, 2", **linear(3))
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    expected = run(model, x)
    fold_batch_norm(model)
    assert [node.op_type for node in model.graph.node] == ["Gemm", "Reshape", "Relu"]
    assert np.abs(run(model, x) - expected).max() < 1e-5


@pytest.mark.parametrize(
    "body",
    [
        BODY.replace("y = Relu(n)", "m = Relu(n) y = Add(m, r)"),
        BODY.replace("transB = 1", "transB = 1, alpha = 2.0"),
    ],
    ids=["read twice", "scaled"],
)
def test_a_linear_layer_that_can_not_take_it_up_is_left(body: str) -> None:
    model = model_of(body, "batch, 5", "batch, 3, 2, 2", **linear(3))
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    expected = run(model, x)
    fold_batch_norm(model)
    assert "BatchNormalization" not in [node.op_type for node in model.graph.node]
    assert "Mul" in [node.op_type for node in model.graph.node]
    assert np.abs(run(model, x) - expected).max() < 1e-5


def test_a_name_that_is_taken_gets_out_of_the_way() -> None:
    model = model_of("image = Relu(x) y = Neg(image)", "batch, 5")
    rename(model, {"x": "image", "y": "image_out"})
    onnx.checker.check_model(model, full_check=True)
    x = np.array([[1, -2, 3, -4, 5]], np.float32)
    result = ort_session(model.SerializeToString()).run(["image_out"], {"image": x})[0]
    assert result.tolist() == [[-1, 0, -3, 0, -5]]


def test_notes_of_the_machine_are_taken_out() -> None:
    model = model_of("y = Relu(x)", "batch, 5")
    for holder in (model, model.graph, model.graph.node[0]):
        holder.doc_string = "/home/someone/net.py"
        entry = holder.metadata_props.add()
        entry.key, entry.value = "stack", "/home/someone/net.py"
    tidy(model, "net-x2")
    assert b"someone" not in model.SerializeToString()
    assert model.graph.name == "net-x2"
