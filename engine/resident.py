"""Memory of this process, or of a GPU: how far it grows at most while something runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tilefuse.machine import release_device_memory, release_memory

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Result = TypeVar("Result")


def peak_growth(call: Callable[[], Result], device: str = "cpu") -> tuple[Result, int | None]:
    """Run a call and return its result and the most bytes the process held beyond what it held before.

    Memory that was freed earlier is first given back to the system, as far as the C library can, or the call would be
    served from it unseen. The growth is None where the system doesn't tell (no /proc). On a GPU it is the device's
    memory that torch took from the driver, and None where that is none: of other libraries nothing is told.
    """
    release_memory()
    if device.startswith("cuda"):
        import torch

        torch.cuda.init()  # type: ignore[no-untyped-call]
        release_device_memory()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_reserved(device)
        result = call()
        return result, max(0, torch.cuda.max_memory_reserved(device) - held) or None
    try:
        _RESET.write_text("5")
        before = _resident("VmRSS")
    except OSError:
        return call(), None
    result = call()
    return result, max(0, _resident("VmHWM") - before)


def _resident(key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
