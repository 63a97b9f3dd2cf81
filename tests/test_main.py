"""`python -m tilefuse` is the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "tilefuse", "run"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "python -m tilefuse run [OPTIONS] IN..." in done.stderr


def started(*arguments: str, **streams: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "tilefuse", *arguments], text=True, **streams)  # type: ignore[call-overload,no-any-return]


def test_a_full_disk_is_told_in_one_line() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full, started("--help", stdout=full, stderr=subprocess.PIPE) as running:
        said = running.communicate(timeout=300)[1]
    assert running.returncode == 2
    assert said.startswith("tilefuse: ")
    assert "No space left" in said
    assert said.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error_to_talk_about() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone, started("--help", stdout=gone, stderr=subprocess.PIPE) as running:
        said = running.communicate(timeout=300)[1]
    assert running.returncode == 141
    assert said == ""


def test_closed_streams_are_no_files_of_ours(tmp_path: Path) -> None:
    """A file that is opened next must not become standard error."""
    code = (
        "import os, sys; from tilefuse.standard_streams import prepare_streams; prepare_streams(); "
        f"number = os.open({str(tmp_path / 'result')!r}, os.O_CREAT | os.O_WRONLY); "
        "sys.stdout.write('x'); sys.stderr.write('x'); sys.exit(number)"
    )
    closing = ["sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, code]
    assert subprocess.run(closing, timeout=300, check=False).returncode > 2


def test_characters_that_a_terminal_lacks_are_escaped() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    with started("models", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        said, complaints = running.communicate(timeout=300)
    assert running.returncode == 0
    assert "\\u2026" in said
    assert complaints == ""
