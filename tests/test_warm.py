"""`tilefuse warm`: what it measures is recorded, and serves the runs after it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.test_cli import tilefuse as command
from tilefuse.commands import doctor
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


def test_a_cache_that_can_not_be_written_is_told_once_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("mine")
    monkeypatch.setenv("TILEFUSE_BACKENDS", "torch_eager")
    done = command("warm", "espcn-x2", *("--size", "33x20") * 2, "--seconds", "0.2", "--cache-dir", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"tilefuse: the choice can't be recorded in {tmp_path / 'cache'}")
    assert (tmp_path / "cache").read_text() == "mine"


def test_another_librarys_warning_is_shown_as_python_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def warned() -> dict[str, object]:
        warnings.warn("theirs", UserWarning, stacklevel=1)
        return {"serving": ["torch_eager"]}

    monkeypatch.setattr(doctor, "examine", warned)
    assert "UserWarning: theirs" in command("doctor", "--json").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--size", "70"), "WIDTHxHEIGHT"), (("--type", "int4"), "uint16"), (("--backend", "cudnn"), "torch_eager")],
)
def test_what_it_can_not_read_is_told(arguments: tuple[str, str], message: str) -> None:
    done = CliRunner().invoke(warm, ["espcn-x2", *arguments])
    told = done.output if done.exception is None or isinstance(done.exception, SystemExit) else str(done.exception)
    assert message in told
    assert done.exit_code == 2 or isinstance(done.exception, UsageError)
