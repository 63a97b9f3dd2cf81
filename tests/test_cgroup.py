"""The limits of control groups, as files lay them down: a container's, or a service's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilefuse import machine
from tilefuse.cgroup import ControlGroups, memory_left

MIB = 1 << 20


def laid(root: Path, **files: str) -> Path:
    """Write the files of a group; a dot in a name is written as two underscores."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text + "\n")
    return root


def test_version_2_leaves_what_the_limit_does_and_cached_files(tmp_path: Path) -> None:
    group = laid(
        tmp_path / "service",
        memory__max=str(1000 * MIB),
        memory__current=str(700 * MIB),
        memory__stat=f"anon {400 * MIB}\ninactive_file {250 * MIB}\nactive_file {50 * MIB}",
        cpu__max="150000 100000",
    )
    found = ControlGroups("0::/service\n", tmp_path)
    assert found.limiting_memory() == (group,)
    assert memory_left(group) == 550 * MIB
    assert found.processors() == 2


def test_version_1_says_the_same_in_other_files(tmp_path: Path) -> None:
    group = laid(
        tmp_path / "memory" / "docker" / "abc",
        memory__limit_in_bytes=str(1000 * MIB),
        memory__usage_in_bytes=str(700 * MIB),
        memory__stat=f"inactive_file 1\ntotal_inactive_file {250 * MIB}",
    )
    laid(tmp_path / "cpu,cpuacct" / "docker" / "abc", cpu__cfs_quota_us="400000", cpu__cfs_period_us="100000")
    found = ControlGroups("9:memory:/docker/abc\n5:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n", tmp_path)
    assert found.limiting_memory() == (group,)
    assert memory_left(group) == 550 * MIB
    assert found.processors() == 4


def test_a_limit_holds_for_the_groups_below(tmp_path: Path) -> None:
    laid(tmp_path / "a" / "b" / "c", memory__max="max", cpu__max="max 100000")
    middle = laid(
        tmp_path / "a" / "b", memory__max=str(500 * MIB), memory__current=str(100 * MIB), cpu__max="300000 1000"
    )
    top = laid(tmp_path / "a", memory__max=str(200 * MIB), memory__current=str(150 * MIB), cpu__max="200000 100000")
    found = ControlGroups("0::/a/b/c\n", tmp_path)
    assert found.limiting_memory() == (middle, top)
    assert [memory_left(group) for group in found.limiting_memory()] == [400 * MIB, 50 * MIB]
    assert found.processors() == 2


@pytest.mark.parametrize("membership", ["0::/", "0::/../../other/group", "4:memory:/docker/abc\n0::/"])
def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path, membership: str) -> None:
    laid(tmp_path, memory__max=str(64 * MIB), memory__current="0")
    laid(tmp_path / "memory", memory__limit_in_bytes=str(32 * MIB), memory__usage_in_bytes="0")
    found = [memory_left(group) for group in ControlGroups(membership, tmp_path).limiting_memory()]
    assert min(found) == (32 if "memory" in membership else 64) * MIB


@pytest.mark.parametrize(
    ("limit", "quota"), [("max", "max 100000"), ("9223372036854771712", "-1 100000"), ("", ""), ("many", "0 0")]
)
def test_what_limits_nothing(tmp_path: Path, limit: str, quota: str) -> None:
    laid(tmp_path / "g", memory__max=limit, cpu__max=quota, memory__limit_in_bytes=limit, cpu__cfs_quota_us="-1")
    found = ControlGroups("0::/g\nnonsense\n", tmp_path)
    assert found.limiting_memory() == ()
    assert found.processors() is None


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    assert memory_left(laid(tmp_path, memory__max="100", memory__current="300")) == 0


def test_the_budget_stays_within_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = laid(tmp_path, memory__max=str(300 * MIB), memory__current=str(100 * MIB))
    monkeypatch.setattr(machine, "_memory_limits", lambda: (group,))
    assert machine.available_memory() == 200 * MIB


def test_threads_stay_within_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_processors_granted", lambda: 1)
    assert machine.cpu_threads() == 1
