"""`tilefuse warm`: what it measures is recorded, and serves the runs after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tilefuse.commands.warm import warm
from tilefuse.errors import UsageError


def tilefuse(*arguments: object, backends: str = "torch_eager,openvino") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from tilefuse.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "TILEFUSE_BACKENDS": backends}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.thorough
def test_what_was_measured_serves_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEFUSE_CACHE_DIR", str(tmp_path / "cache"))
    done = tilefuse("warm", "espcn-x2", "--size", "70x50", "--seconds", "30", "--precision", "fp32", "--json")
    assert done.returncode == 0, done.stderr
    chosen = json.loads(done.stdout)
    assert chosen["size"] == [70, 50]
    assert any("chosen" in why for why in chosen["why"])
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "in.png")
    run = tilefuse(
        *("run", tmp_path / "in.png", "-o", tmp_path / "out.png", "-m", "espcn-x2", "--precision", "fp32", "--explain")
    )
    assert run.returncode == 0, run.stderr
    assert f"{chosen['backend']} in fp32: recorded at 70x50" in run.stdout
    assert "chosen" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--size", "70"), "WIDTHxHEIGHT"), (("--type", "int4"), "uint16"), (("--backend", "cudnn"), "torch_eager")],
)
def test_what_it_can_not_read_is_told(arguments: tuple[str, str], message: str) -> None:
    done = CliRunner().invoke(warm, ["espcn-x2", *arguments])
    told = done.output if done.exception is None or isinstance(done.exception, SystemExit) else str(done.exception)
    assert message in told
    assert done.exit_code == 2 or isinstance(done.exception, UsageError)
