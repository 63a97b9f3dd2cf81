"""Compiled sessions: compiled once, the last few kept, given up when told to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import pytest

from tilefuse.backends.base import Session
from tilefuse.sessions import SessionCache


def test_the_last_few_are_kept_and_forgotten_ones_compiled_again() -> None:
    compiled: list[int] = []

    def compile_session(key: int) -> Session:
        compiled.append(key)
        return cast(Any, f"session {key}")

    sessions: SessionCache[int] = SessionCache(compile_session, capacity=2)
    assert [sessions.get(key) for key in (1, 2, 1)] == ["session 1", "session 2", "session 1"]
    sessions.get(3)
    sessions.get(1)
    sessions.get(2)
    assert compiled == [1, 2, 3, 2]
    sessions.forget(lambda key: key == 1)
    sessions.get(2)
    sessions.get(1)
    assert compiled == [1, 2, 3, 2, 1]


def forked(work: Callable[[], str]) -> str:
    """Run work in a forked process and return what it says."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = work()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as pipe:
        return pipe.read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_is_told_that_the_threads_stayed_behind() -> None:
    cache: SessionCache[str] = SessionCache(lambda key: key)  # type: ignore[arg-type,return-value]
    assert forked(lambda: str(cache.get("a"))) == "a"
    assert cache.get("a") == "a"
    for key in ("a", "b"):
        assert forked(lambda key=key: str(cache.get(key))).startswith("UsageError: the engine ran in process")  # type: ignore[misc]
    assert cache.get("b") == "b"
