"""Amounts of memory as people write them, and what the machine tells."""

from __future__ import annotations

import pytest

from tilefuse.errors import UsageError
from tilefuse.machine import available_memory, cache_bytes, cpu_threads, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (1024, 1024),
        ("768MiB", 768 * 2**20),
        ("2GiB", 2**31),
        ("2g", 2**31),
        ("1.5 GB", 3 * 2**29),
        ("64k", 65536),
        ("7", 7),
    ],
)
def test_amounts_of_memory(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "lots", "-1", "0", "2XB", "1e3", "GiB", "inf"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="768MiB"):
        parse_bytes(text)


def test_amounts_read_back() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1536, 2**20, 5 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "1.0 MiB",
        "5.0 GiB",
    ]


def test_the_machine_has_something() -> None:
    assert cpu_threads() >= 1
    assert available_memory() > 2**26
    assert cache_bytes() >= 2**15
