"""The ONNX project's own node tests, through the importer: each passes or is refused by name; none is wrong."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tilefuse.capture import from_onnx
from tilefuse.errors import ModelError

onnx = pytest.importorskip("onnx")

OPERATORS = frozenset(
    """
    Conv ConvTranspose DepthToSpace SpaceToDepth Resize PRelu LeakyRelu Relu Sigmoid Tanh Clip Gelu HardSwish Add Sub
    Mul Div Concat Split Slice Pad MaxPool AveragePool GlobalAveragePool BatchNormalization InstanceNormalization
    GroupNormalization Gemm Flatten Reshape ReduceMean
    """.split()  # noqa: SIM905
)
# Inputs that describe the op rather than carry the image; the vocabulary holds them as attributes.
DESCRIBING = {"Resize": (1, 2, 3), "Pad": (1, 2, 3)}
# What a refusal may name beside an op of the model: the data type of an input.
DATA_TYPES = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL", "STRING")


@dataclass(frozen=True)
class Outcome:
    """How one test case of the suite ended."""

    name: str
    ops: frozenset[str]
    verdict: str
    reason: str = ""

    @property
    def direct(self) -> bool:
        """Whether the case holds the listed operators only, and is not the body of another function."""
        return self.ops <= OPERATORS | {"Constant"}


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    from onnx.backend.test.loader import load_model_tests

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        # The suite's own case generation overflows on purpose.
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    return [outcome for case in cases for outcome in _outcomes(case)]


def _outcomes(case: Any) -> Iterator[Outcome]:
    ops = {node.op_type for node in case.model.graph.node}
    if not ops & OPERATORS:
        return
    for inputs, expected in case.data_sets:
        verdict, reason = _run(case, inputs, expected)
        yield Outcome(case.name, frozenset(ops), verdict, reason)


def _run(case: Any, inputs: list[Any], expected: list[Any]) -> tuple[str, str]:
    given = {spec.name: value for spec, value in zip(case.model.graph.input, inputs, strict=True)}
    frozen = _frozen(case.model, given)
    try:
        graph = from_onnx(case.model, frozen)
    except ModelError as error:
        return "refused", str(error)
    images = [torch.from_numpy(np.array(given[spec.name], dtype=np.float32)) for spec in graph.inputs]
    results = graph.evaluate(*images)
    try:
        assert len(results) == len(expected)
        for result, wanted in zip(results, expected, strict=True):
            assert tuple(result.shape) == np.shape(wanted)
            np.testing.assert_allclose(result, np.asarray(wanted, np.float32), rtol=case.rtol, atol=case.atol)
    except AssertionError as error:
        return "wrong", str(error)
    return "passed", ""


def _frozen(model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Bind the inputs that are whole numbers, or that describe the op; the first input stays the image."""
    describing = {
        name for node in model.graph.node for i in DESCRIBING.get(node.op_type, ()) for name in node.input[i : i + 1]
    }
    first = model.graph.input[0].name if model.graph.input else ""
    return {
        name: np.asarray(value)
        for name, value in given.items()
        if name != first
        and not isinstance(value, list)
        and (name in describing or np.asarray(value).dtype.kind in "iu")
    }


def test_no_case_gives_a_wrong_answer(outcomes: list[Outcome]) -> None:
    wrong = [outcome for outcome in outcomes if outcome.verdict == "wrong"]
    assert not wrong, "\n".join(f"{o.name}: {o.reason}" for o in wrong)


def test_at_least_188_direct_cases_pass(outcomes: list[Outcome]) -> None:
    direct, bodies = (Counter(o.verdict for o in outcomes if o.direct is kind) for kind in (True, False))
    print(f"direct: {dict(direct)}; inside function bodies: {dict(bodies)}")
    print("\n".join(f"refused: {o.name}: {o.reason}" for o in outcomes if o.verdict == "refused"))
    assert direct["passed"] >= 188
    assert bodies["passed"] >= 74


def test_every_refusal_names_an_op_or_a_data_type(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.verdict == "refused":
            words = set(re.findall(r"\w+", outcome.reason))
            assert words & (outcome.ops | set(DATA_TYPES)), f"{outcome.name}: {outcome.reason}"


def test_every_listed_operator_passes_at_least_once(outcomes: list[Outcome]) -> None:
    passed = {op for outcome in outcomes if outcome.verdict == "passed" for op in outcome.ops}
    assert passed >= OPERATORS
