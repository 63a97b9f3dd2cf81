"""What the tests of exports share: a tiny network, a look into files, and tracing done once for each network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tilefuse.export import onnx as export
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.onnx_inputs import Signature

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

_traced: dict[tuple[object, ...], Any] = {}
_trace = export.trace


@pytest.fixture
def tracing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace each network once: torch takes seconds for it, and what is tested comes after."""

    def trace(module: nn.Module, signature: Signature, output: str, *, opset: int) -> Any:
        total = sum(float(tensor.double().sum()) for tensor in module.state_dict().values())
        key = (type(module).__name__, total, signature, output, opset)
        if key not in _traced:
            _traced[key] = _trace(module, signature, output, opset=opset)
        copy = onnx.ModelProto()
        copy.CopyFrom(_traced[key])
        return copy

    monkeypatch.setattr(export, "trace", trace)


def tiny() -> nn.Module:
    """Make an ESPCN of a few weights, always the same."""
    torch.manual_seed(0)
    return ESPCN(2, features=(4, 4))


def session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def dims(value: Any) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
