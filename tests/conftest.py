"""Shared comparison: every numeric test prints and bounds both the largest and the root-mean-square error."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Timing varies with the machine; laws do not.
settings.register_profile(
    "tilefuse", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tilefuse")

# Read when Triton is imported: its interpreter runs the kernels on this machine's processor.
os.environ.setdefault("TRITON_INTERPRET", "1")

Compare = Callable[..., None]
NOBODY = 65534


def hear_interrupts() -> None:
    """Let a child process be interrupted though the tests run in the background, where a shell has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep choices that this machine's user has recorded out of the tests, and those of the tests out of there."""
    os.environ["TILEFUSE_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def assert_close() -> Compare:
    """Return a check that two tensors agree in shape, in largest and in rms difference."""

    def check(actual: torch.Tensor, expected: torch.Tensor, *, max_abs: float = 1e-5, what: str = "") -> None:
        assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} != {tuple(expected.shape)}"
        if actual.numel() == 0:
            return
        difference = (actual.double() - expected.double()).abs()
        largest, rms = difference.max().item(), difference.square().mean().sqrt().item()
        print(f"{what}: max {largest:.3e} rms {rms:.3e}")
        assert torch.isfinite(difference).all(), f"{what}: non-finite difference"
        assert largest <= max_abs, f"{what}: max error {largest:.3e} > {max_abs:.1e} (rms {rms:.3e})"

    return check


@pytest.fixture
def ordinary_folder() -> Iterator[Path]:
    """Give a folder of an ordinary user, as whom the test runs: the superuser may read and write everywhere."""
    folder, is_root = Path(tempfile.mkdtemp(prefix="tilefuse-")), os.geteuid() == 0
    if is_root:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)
        shutil.rmtree(folder)
