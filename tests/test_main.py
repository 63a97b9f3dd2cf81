"""`python -m tilefuse` is the command line."""

from __future__ import annotations

import subprocess
import sys


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "tilefuse", "run"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "python -m tilefuse run [OPTIONS] IN..." in done.stderr
