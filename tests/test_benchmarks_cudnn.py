"""The baseline of cuDNN's fused graphs, its graphs computed by torch: what is put into them, and that it is right."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_clock import HostClock
from benchmarks.gpu_cudnn import fused_network
from benchmarks.gpu_runners import MissingError, cudnn_runner
from tests import models
from tests.conftest import Compare
from tilefuse.capture import from_module


class Value:
    """A tensor of a graph: how it is computed from what is given at execution."""

    def __init__(self, compute: Any, name: str) -> None:
        self.compute, self.name, self.output = compute, name, False

    def set_output(self, output: bool) -> Value:
        self.output = output
        return self

    def set_data_type(self, _: object) -> Value:
        return self


class PyGraph:
    """Stands in for cudnn.pygraph, with the same names and arguments."""

    made: ClassVar[list[list[str]]] = []

    def __init__(self, **_: object) -> None:
        self.ops: list[str] = []
        self.last: Value | None = None
        self.made.append(self.ops)

    def tensor(self, *, dim: list[int], stride: list[int], data_type: object) -> Value:
        value = Value(None, "tensor")

        def given(pack: Any) -> Tensor:
            found: Tensor = pack[value]
            assert (list(found.shape), list(found.stride())) == (dim, stride), "another layout than was declared"
            return found

        value.compute = given
        return value

    def _op(self, name: str, function: Any, *inputs: Value) -> Value:
        self.ops.append(name)
        self.last = Value(lambda pack: function(*(each.compute(pack) for each in inputs)), name)
        return self.last

    def conv_fprop(self, *, image: Value, weight: Value, pre_padding: Any, post_padding: Any, stride: Any,
                   dilation: Any) -> Value:  # fmt: skip
        (top, left), (bottom, right) = pre_padding, post_padding
        return self._op(
            "conv",
            lambda x, w: F.conv2d(F.pad(x, (left, right, top, bottom)), w, stride=stride, dilation=dilation),
            image, weight,
        )  # fmt: skip

    def bias(self, *, input: Value, bias: Value) -> Value:
        return self._op("bias", torch.add, input, bias)

    def relu(self, *, input: Value, negative_slope: float = 0.0) -> Value:
        return self._op("relu", lambda x: F.leaky_relu(x, negative_slope), input)

    def tanh(self, *, input: Value) -> Value:
        return self._op("tanh", torch.tanh, input)

    def swish(self, *, input: Value) -> Value:
        return self._op("swish", F.silu, input)

    def sub(self, *, a: Value, b: Value) -> Value:
        return self._op("sub", torch.sub, a, b)

    def mul(self, *, a: Value, b: Value) -> Value:
        return self._op("mul", torch.mul, a, b)

    def add(self, *, a: Value, b: Value) -> Value:
        return self._op("add", torch.add, a, b)

    def build(self, heuristics: list[str]) -> None:
        assert heuristics == ["A", "FALLBACK"]

    def get_workspace_size(self) -> int:
        return 16

    def execute(self, pack: Any, workspace: Tensor, handle: object) -> None:
        assert self.last is not None
        assert self.last.output
        assert workspace.numel() == 16
        assert handle == "handle"
        pack[self.last].copy_(self.last.compute(pack))


def stand_in() -> ModuleType:
    module = ModuleType("cudnn")
    module.pygraph, module.create_handle = PyGraph, lambda: "handle"  # type: ignore[attr-defined]
    module.data_type = SimpleNamespace(HALF="half", FLOAT="float")  # type: ignore[attr-defined]
    module.heur_mode = SimpleNamespace(A="A", FALLBACK="FALLBACK")  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("espcn", ["conv", "bias", "tanh"]),
        ("compact", ["conv", "bias", "relu", "sub", "mul", "add"]),
        ("rrdbnet", ["conv", "bias"]),
        ("fsrcnn", ["conv", "bias", "relu", "sub", "mul", "add"]),
    ],
)
def test_a_network_is_right_and_its_convolutions_are_fused(name: str, first: list[str], assert_close: Compare) -> None:
    module, x = models.build(name)
    with torch.no_grad():
        graph = from_module(module, x)
        PyGraph.made = []
        network = fused_network(graph, tuple(x.shape), torch.float32, "cpu", stand_in())
        given = x.contiguous(memory_format=torch.channels_last)
        assert_close(network(given), graph.evaluate(x)[0], max_abs=1e-5, what=name)
        # A second call reads what it is given, not what the first left.
        assert_close(network(given * 0.5), graph.evaluate(x * 0.5)[0], max_abs=1e-5, what=name)
    assert PyGraph.made[0] == first
    built = [ops for ops in PyGraph.made if ops]
    assert len(built) >= 3
    assert all(ops[0] == "conv" for ops in built)


def test_it_is_named_as_absent_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = models.build("espcn")
    graph = from_module(module, x)
    monkeypatch.setattr("benchmarks.gpu_runners.find_spec", lambda _: None)
    with pytest.raises(MissingError, match="cudnn-frontend is not installed"):
        cudnn_runner(graph, x, HostClock())
    monkeypatch.setattr("benchmarks.gpu_runners.find_spec", lambda _: object())
    with pytest.raises(MissingError, match="it runs on a GPU"):
        cudnn_runner(graph, x, HostClock())
