"""Machines without Triton or a GPU: everything imports, and the reason why kernels can't run is clear."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tilefuse.errors import BackendError
from tilefuse.kernels import toolchain
from tilefuse.kernels.tensors import row_tile
from tilefuse.kernels.toolchain import interpreted, unavailable


def test_everything_imports_without_triton():
    script = """
import sys
sys.modules["triton"] = None
from pathlib import Path
from importlib import import_module
import tilefuse.kernels
for path in sorted(Path(tilefuse.kernels.__path__[0]).glob("*.py")):
    import_module(f"tilefuse.kernels.{path.stem}")
import torch
from tilefuse.errors import BackendError
from tilefuse.kernels.conv2d import conv2d
try:
    conv2d(torch.zeros(1, 2, 2, 3), torch.zeros(4, 3, 1, 1))
except BackendError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert "tensor x: Triton is not installed; install tilefuse[gpu]" in done.stdout, done.stderr


def test_each_reason_is_told_apart(monkeypatch):
    if interpreted():
        assert unavailable("cpu") is None
        assert "CPU tensors only" in str(unavailable("cuda"))
    monkeypatch.setattr(toolchain, "interpreted", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "set it before Triton is imported" in str(unavailable("cpu"))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "set it to 1 for Triton's slow interpreter" in str(unavailable("cpu"))
    monkeypatch.setattr(toolchain.triton, "__version__", "3.4.0")
    assert "Triton 3.4.0 is too old" in str(unavailable("cpu"))


@pytest.mark.parametrize(("capability", "serves"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_old_gpus_are_named(capability, serves, monkeypatch):
    monkeypatch.setattr(toolchain, "interpreted", lambda: False)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    reason = unavailable("cuda")
    assert (reason is None) == serves
    assert serves or "8.0 or newer" in str(reason)
    assert toolchain.target("cuda") == capability[0] * 10 + capability[1]


def test_rows_of_more_programs_than_a_grid_has_are_named():
    tile = row_tile(1, 2**30)
    assert tile.grid(3, 65535 * tile.columns) == (3, 65535)
    with pytest.raises(BackendError, match=r"a row of the result has .* elements .* are accepted"):
        tile.grid(3, 65535 * tile.columns + 1)
