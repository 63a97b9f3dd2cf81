"""Measurements: run by hand or by `make`, recorded in `results/`, never part of the tests."""

import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

# On a machine that has this repository and no installation of it, a folder of links stands for one.
if find_spec("tilefuse") is None:
    _root = Path(__file__).resolve().parents[1]
    _package = Path(mkdtemp(prefix="tilefuse-")) / "tilefuse"
    _package.mkdir()
    for _part in (*(_root / "engine").iterdir(), _root / "kernels", _root / "export"):
        (_package / _part.name).symlink_to(_part)
    sys.path.insert(0, str(_package.parent))
