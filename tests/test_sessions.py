"""Compiled sessions: compiled once, the last few kept, given up when told to."""

from __future__ import annotations

from typing import Any, cast

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
