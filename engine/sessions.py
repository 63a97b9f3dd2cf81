"""Compiled sessions, kept per window shape and shared by threads."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

from tilefuse.backends.base import Session
from tilefuse.backends.pixels import PixelSession

Key = TypeVar("Key")


class SessionCache(Generic[Key]):
    """Compiles a session at its first use and keeps the last few; two threads never compile the same one twice."""

    def __init__(self, compile_session: Callable[[Key], Session | PixelSession], capacity: int = 4) -> None:
        self._compile = compile_session
        self._capacity = capacity
        self._lock = Lock()
        self._sessions: OrderedDict[Key, Session | PixelSession] = OrderedDict()

    def get(self, key: Key) -> Session | PixelSession:
        """Return the session for `key`, compiling it when it is not there."""
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = self._compile(key)
            self._sessions.move_to_end(key)
            while len(self._sessions) > self._capacity:
                self._sessions.popitem(last=False)
            return self._sessions[key]

    def forget(self, unwanted: Callable[[Key], bool]) -> None:
        """Give up the sessions that `unwanted` tells, so that their memory is free once nobody runs them."""
        with self._lock:
            for key in [key for key in self._sessions if unwanted(key)]:
                del self._sessions[key]
