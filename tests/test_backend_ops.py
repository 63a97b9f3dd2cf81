"""Every backend on every op of the vocabulary and on small networks: `Graph.evaluate`'s result, or a refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import vocabulary
from tests.networks import Network, random_network
from tilefuse.backends import registry
from tilefuse.capture import from_module
from tilefuse.errors import BackendError
from tilefuse.graph import Graph, Node
from tilefuse.model import Model

pytestmark = pytest.mark.thorough

EXACT = ("torch_eager", "onnxruntime", "openvino", "ncnn")
TOLERANCE = 1e-4
GROUPS: dict[str, Callable[[], dict[str, Graph]]] = {
    "convolutions": vocabulary.convolutions,
    "pointwise": vocabulary.pointwise,
    "layout": vocabulary.layout,
    "resizing": vocabulary.resizing,
}
# Names, or beginnings of names, of cases that a library may refuse; the rest everyone serves.
REFUSABLE: dict[str, tuple[str, ...]] = {
    "convolutions": (),
    "pointwise": ("prelu by column",),
    "layout": ("slice 3", "adaptive_pool2d max (3", "mean (1, 2, 3) dropped", "mean over the batch"),
    "resizing": ("nearest", "linear", "cubic"),
}
REFUSABLE["layout"] += tuple(f"pool2d {kind} {name}" for kind in ("max", "avg") for name in ("dilated", "rounded up"))
SERVED_RESIZES = {f"{how} x{factor}" for how in ("linear half_pixel", "cubic half_pixel") for factor in (2, 3)} | {
    "nearest asymmetric floor x2",
    "nearest asymmetric floor x3",
    "linear half_pixel to 5x11",
    "linear align_corners to 5x11",
}


def run(name: str, graph: Graph, *inputs: Tensor) -> list[Tensor]:
    shapes = [tuple(x.shape) for x in inputs]
    model = Model("case", "0", graph=graph)
    session = registry.get(name).compile(model, shapes, device="cpu", precision="fp32", threads=1)
    return session.run(*inputs)


def compare(label: str, actual: list[Tensor], expected: list[Tensor]) -> str | None:
    """Print the largest and the rms error, relative to full scale; return what is wrong."""
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        if a.shape != e.shape:
            return f"{label}: shape {tuple(a.shape)} is not {tuple(e.shape)}"
        difference = (a - e).abs() / max(1.0, e.abs().max().item())
        largest, rms = difference.max().item(), difference.square().mean().sqrt().item()
        print(f"{label}: max {largest:.2e} rms {rms:.2e}")
        if not largest <= TOLERANCE:
            return f"{label}: {largest:.2e}"
    return None


def compare_all(name: str, cases: dict[str, Graph], sizes: tuple[tuple[int, int], ...] = ((7, 9),)) -> list[str]:
    """Compare every case that a backend serves; return those it refuses."""
    reasons, wrong = dict[str, str](), list[str | None]()
    for label, graph in cases.items():
        for size in sizes:
            inputs = vocabulary.example_inputs(graph, size=size)
            try:
                actual = run(name, graph, *inputs)
            except BackendError as refusal:
                reasons[label] = str(refusal)
                continue
            wrong.append(compare(f"{name} {label} {size}", actual, graph.evaluate(*inputs)))
    for label, reason in reasons.items():
        print(f"{name} {label}: refused: {reason}")
    assert [error for error in wrong if error] == []
    assert [reason for reason in reasons.values() if len(reason) < 20 or "\n" in reason] == [], (
        "one line, with a reason"
    )
    return list(reasons)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", EXACT)
def test_every_op_is_right_or_refused(name: str, group: str) -> None:
    refused = compare_all(name, GROUPS[group]())
    if name == "torch_eager":
        assert refused == []
    assert [label for label in refused if not label.startswith(REFUSABLE[group])] == []
    assert SERVED_RESIZES & set(refused) == set()


@pytest.mark.parametrize("name", EXACT)
def test_networks_are_right_at_odd_sizes(name: str) -> None:
    assert compare_all(name, vocabulary.networks(), ((7, 9), (17, 63))) == []


@pytest.mark.parametrize("name", EXACT)
def test_networks_are_right_on_the_smallest_images(name: str) -> None:
    cases = {label: graph for label, graph in vocabulary.networks().items() if label in ("ESPCN", "Compact", "RRDB")}
    assert compare_all(name, cases, ((1, 1), (1, 3), (2, 2), (63, 1))) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "ncnn"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(network=random_network(global_ops=True), steps=st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_random_networks_are_right_or_refused(name: str, network: Network, steps: tuple[int, int]) -> None:
    size = (network.size(steps[0]), network.size(steps[1]))
    x = torch.rand(1, network.in_channels, *size)
    graph = from_module(network.module, x)
    try:
        actual = run(name, graph, x)
    except BackendError as refusal:
        print(f"{name} refused: {refusal}")
        return
    assert compare(name, actual, graph.evaluate(x)) is None


def joined(cases: dict[str, Graph]) -> Graph:
    """Join graphs of one node into one graph, so that a slow compiler runs once."""
    nodes, outputs, weights = [], [], {}
    for position, graph in enumerate(cases.values()):
        (node,) = graph.nodes
        names = {name: f"{name}_{position}" for name in graph.weights}
        nodes.append(Node(node.op, tuple(names.get(name, name) for name in node.inputs), f"y{position}"))
        outputs.append(f"y{position}")
        weights |= {names[name]: weight for name, weight in graph.weights.items()}
    return Graph(next(iter(cases.values())).inputs, tuple(nodes), tuple(outputs), weights)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", GROUPS)
def test_inductor_compiles_every_op_right(group: str) -> None:
    signatures: dict[tuple[object, ...], dict[str, Graph]] = {}
    for label, graph in GROUPS[group]().items():
        inputs = vocabulary.example_inputs(graph)
        signatures.setdefault(tuple((tuple(x.shape), x.min() > 0) for x in inputs), {})[label] = graph
    for cases in signatures.values():
        graph = joined(cases)
        inputs = vocabulary.example_inputs(next(iter(cases.values())))
        results = zip(cases, run("inductor", graph, *inputs), graph.evaluate(*inputs), strict=True)
        wrong = [compare(f"inductor {label}", [actual], [expected]) for label, actual, expected in results]
        assert [error for error in wrong if error] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_inductor_compiles_networks_right() -> None:
    assert compare_all("inductor", vocabulary.networks()) == []
