"""Bad model files end in one ModelError, quickly, in bounded memory, and nothing in them runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.models import MARKER
from tilefuse.errors import ModelError
from tilefuse.export.checkpoints import load_state_dict

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]

# Loads every file in one process, which alone can tell how much memory they took.
LOAD_ALL = """
import json, pathlib, resource, sys, time
from tests.attacks.models import build
from tilefuse.errors import TilefuseError
from tilefuse.export.checkpoints import load_module

results = []
attacks = build(pathlib.Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, path, expected in attacks:
    started = time.perf_counter()
    try:
        load_module(path)
        outcome = "accepted"
    except TilefuseError as error:
        outcome = f"{type(error).__name__}: {error}"
    results.append((name, str(path), expected, outcome, time.perf_counter() - started))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"results": results, "grown_kib": peak - before}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, folder], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_every_attack_is_refused_in_one_line_that_names_file_and_fault(outcome: dict[str, Any]) -> None:
    assert len({path for _, path, *_ in outcome["results"]}) == len(outcome["results"]) > 80
    for name, path, expected, said, _ in outcome["results"]:
        assert said.startswith(f"ModelError: {path}: "), (name, said)
        message = said.removeprefix(f"ModelError: {path}: ")
        assert expected in message, (name, said)
        assert message.isprintable(), (name, said)
        assert len(message) < 600, (name, said)


def test_nothing_in_a_file_ran(outcome: dict[str, Any], folder: Path) -> None:
    assert outcome["results"]
    assert not (folder / MARKER).exists()


def test_refusals_are_quick(outcome: dict[str, Any]) -> None:
    slow = {name: seconds for name, *_, seconds in outcome["results"] if seconds > 3}
    assert not slow


def test_memory_stays_bounded(outcome: dict[str, Any]) -> None:
    assert outcome["grown_kib"] < 200 * 1024


def test_a_file_without_permission_is_refused(ordinary_folder: Path) -> None:
    path = ordinary_folder / "net.pth"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(ModelError, match="can't be read"):
        load_state_dict(path)
