"""What a control group leaves a process of the machine's memory and processors: a container's limits.

Source: the Linux kernel's admin guide, control groups of version 2 (memory.max, cpu.max) and 1
(memory.limit_in_bytes, cpu.cfs_quota_us). A group's limit holds for all groups below it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What version 1 says of a group without a limit is near 2^63, less a page.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class ControlGroups:
    """The groups of a process: `membership` as in /proc/self/cgroup, below the folder where they are mounted."""

    membership: str
    mounted: Path

    @classmethod
    def own(cls) -> ControlGroups:
        """Return those of this process; none where the system has no such thing."""
        try:
            membership = Path("/proc/self/cgroup").read_text()
        except OSError:
            membership = ""
        return cls(membership, Path("/sys/fs/cgroup"))

    def limiting_memory(self) -> tuple[Path, ...]:
        """List the groups that limit memory."""
        names = ("memory.max", "memory.limit_in_bytes")
        return tuple(
            group for group in self._groups("memory") if any(_number(group / name) is not None for name in names)
        )

    def processors(self) -> int | None:
        """Return how many processors the least quota of time amounts to, rounded up; None without one."""
        quotas = [found for group in self._groups("cpu") if (found := _quota(group)) is not None]
        return max(1, math.ceil(min(quotas))) if quotas else None

    def _groups(self, controller: str) -> Iterator[Path]:
        """Give the groups of a controller, from the process's own up: a container may see the last of them only."""
        for names, path in re.findall(r"^\d+:([^:]*):/(.*)$", self.membership, re.MULTILINE):
            if names and controller not in names.split(","):
                continue
            mounts = [names, controller] if names else [".", "unified"]
            for mount in dict.fromkeys(mounts):
                top = self.mounted / mount
                # A group that is not below the one that a container sees as the top is named by way of "..".
                group = top if ".." in path.split("/") else top / path
                yield from (each for each in (group, *group.parents) if each == top or top in each.parents)


def memory_left(group: Path) -> int:
    """Return the bytes that the processes of a group that limits memory may still take.

    Cached pages of files that were not used lately are given up before any limit is met, so they count as free.
    """
    stat: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", _text(group / "memory.stat"), re.MULTILINE))
    # Version 1 has one number for the group alone and one for those below as well.
    cached = int(stat.get("total_inactive_file") or stat.get("inactive_file", "0"))
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        most = _number(group / limit)
        if most is not None:
            return max(0, most - (_number(group / usage) or 0) + cached)
    return _NO_LIMIT


def _quota(group: Path) -> float | None:
    """Return a group's processor time a second, in seconds."""
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = (_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _number(path: Path) -> int | None:
    """Read a limit; None where there is none."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() and int(text) < _NO_LIMIT else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
