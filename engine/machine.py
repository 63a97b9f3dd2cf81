"""What this machine offers: processors, memory, cache."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
from functools import lru_cache
from pathlib import Path

from tilefuse.cgroup import ControlGroups, memory_left
from tilefuse.errors import UsageError
from tilefuse.forked import threads_left_behind

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}{suffix}": 1024**power for power, letter in enumerate("KMGT", 1) for suffix in ("", "B", "iB")}


def parse_bytes(text: str | int) -> int:
    """Read a number of bytes: 1073741824, "768MiB", "2GiB", "1.5G" (powers of 1024).

    Raises:
        UsageError: the text is no positive amount of memory.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = match and next((u for u in _UNITS if u.lower() == match[2].lower()), None)
    if match is None or unit is None or float(match[1]) <= 0:
        raise UsageError(f"memory: {text!r} is no amount of memory; write bytes or for instance 768MiB or 2GiB")
    return int(float(match[1]) * _UNITS[unit])


def format_bytes(count: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_at_least(count: float) -> str:
    """Write a number of bytes for people, rounded up: what is written suffices, and `parse_bytes` reads it."""
    unit = 1024 ** max(0, min(4, (int(count).bit_length() - 1) // 10))
    return format_bytes(math.ceil(count / unit * 10) / 10 * unit)


def cpu_threads() -> int:
    """Processors this process may use: those it may run on, or fewer where a container gives it less of their time.

    One where it was forked from a process that computed.
    """
    if threads_left_behind():
        return 1
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, _processors_granted() or found)


@lru_cache(maxsize=1)
def _processors_granted() -> int | None:
    return ControlGroups.own().processors()


def cpu_name() -> str:
    """Name of the processor, as the operating system gives it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def has_bf16() -> bool:
    """Tell whether the processor multiplies bfloat16 itself (AVX-512 BF16, AMX, Arm BF16)."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(found[1].split())


def available_memory() -> int:
    """Bytes of memory a process can still take without swapping, and within the limit of its container."""
    return min((_machine_memory(), *map(memory_left, _memory_limits())))


@lru_cache(maxsize=1)
def _memory_limits() -> tuple[Path, ...]:
    return ControlGroups.own().limiting_memory()


def _machine_memory() -> int:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def free_memory(device: str) -> int:
    """Bytes that a process can still take of a GPU, with what torch keeps there unused, or of this machine's RAM."""
    if not device.startswith("cuda"):
        return available_memory()
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def release_memory() -> None:
    """Give freed memory back to the system where the C library can: allocators keep it, and a budget counts it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def release_device_memory() -> None:
    """Give what torch keeps of freed GPU memory back to the driver, so that other libraries and processes may have it.

    It waits for the GPU: for where memory ran out, or is measured.
    """
    import torch

    torch.cuda.empty_cache()


def release_after(error: BaseException) -> None:
    """Give back what did not fit, once memory ran out: first what the frames of the error and its causes keep."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    release_memory()
    release_device_memory()


@lru_cache(maxsize=1)
def cache_bytes() -> int:
    """Size of the last-level cache; 16 MiB where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            sizes.append(parse_bytes(path.read_text().strip()))
        except (OSError, UsageError):
            continue
    return max(sizes, default=16 * 1024**2)
