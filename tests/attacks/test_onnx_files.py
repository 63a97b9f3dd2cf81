"""Hostile ONNX files end in one ModelError, quickly, in bounded memory; nothing outside their folder is read."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("onnx")

from tests.attacks.onnx_files import convolution, external
from tilefuse.errors import ModelError
from tilefuse.importers.onnx import from_onnx

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]

# One process loads every file, which alone can tell how much memory they took; opening the secret would end it.
LOAD_ALL = """
import json, pathlib, resource, sys, time
from tests.attacks.onnx_files import build
from tilefuse.errors import TilefuseError
from tilefuse.importers.onnx import from_onnx

root = pathlib.Path(sys.argv[1])
attacks = build(root)
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
results = []
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, path, expected in attacks:
    started = time.perf_counter()
    try:
        from_onnx(path)
        outcome = "accepted"
    except TilefuseError as error:
        outcome = f"{type(error).__name__}: {error}"
    results.append((name, str(path), expected, outcome, time.perf_counter() - started))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"results": results, "grown_kib": grown, "opened": [path for path in opened if str(root) in path]}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("onnx")
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, folder], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_every_attack_is_refused_in_one_line_that_names_file_and_fault(outcome: dict[str, Any]) -> None:
    assert len(outcome["results"]) > 100
    for name, path, expected, said, _ in outcome["results"]:
        assert said.startswith(f"ModelError: {path}: "), (name, said)
        assert re.search(expected, said.removeprefix(f"ModelError: {path}: ")), (name, said)
        assert "\n" not in said, (name, said)


def test_attacks_are_refused_quickly_and_in_bounded_memory(outcome: dict[str, Any]) -> None:
    assert max(seconds for *_, seconds in outcome["results"]) < 5
    assert outcome["grown_kib"] < 2 * 2**20


def test_no_file_outside_a_model_s_folder_is_opened(outcome: dict[str, Any]) -> None:
    assert outcome["opened"]
    assert not [path for path in outcome["opened"] if path.endswith("secret.bin")]


def test_external_data_in_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    weight = convolution().graph.initializer[0].raw_data
    (tmp_path / "sub" / "w.bin").write_bytes(b"head" + weight)
    model = external("sub/w.bin", offset=4, length=len(weight))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    graph = from_onnx(tmp_path / "model.onnx")
    x = torch.rand(1, 3, 5, 7)
    expected = F.conv2d(x, torch.frombuffer(bytearray(weight), dtype=torch.float32).view(4, 3, 3, 3), padding=1)
    assert torch.equal(graph.evaluate(x)[0], expected)
    with pytest.raises(ModelError, match="load the model from its path"):
        from_onnx(model)


def test_damaged_bytes_end_in_a_graph_or_a_model_error(tmp_path: Path) -> None:
    whole = convolution().SerializeToString()
    path = tmp_path / "model.onnx"
    generator = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            from_onnx(path)
        except ModelError:
            refused += 1
    assert refused > 50


def test_onnx_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModelError, match=r"pip install tilefuse\[cpu\]"):
        from_onnx("model.onnx")
