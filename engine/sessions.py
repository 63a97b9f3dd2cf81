"""Compiled sessions, kept per window shape and shared by threads."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import RLock
from typing import Generic, TypeVar

from tilefuse.backends.base import Session
from tilefuse.backends.pixels import PixelSession
from tilefuse.errors import UsageError
from tilefuse.forked import computing

Key = TypeVar("Key")


@dataclass(frozen=True)
class Room(Generic[Key]):
    """Memory that idle sessions hold: about how much each, how much all may, and what gives it back."""

    held_bytes: Callable[[Key], int]
    limit: Callable[[], int]
    release: Callable[[], None]


class SessionCache(Generic[Key]):
    """Compiles a session at its first use and keeps the last few; two threads never compile the same one twice.

    With `room`, older sessions are given up before one is compiled that would not fit beside them. The threads of what
    was compiled do not follow into a process that is forked afterwards: there it would crash or wait for ever.
    """

    def __init__(
        self,
        compile_session: Callable[[Key], Session | PixelSession],
        capacity: int = 4,
        room: Room[Key] | None = None,
    ) -> None:
        self._compile = compile_session
        self._capacity = capacity
        self._room = room
        # A signal's handler, which may run the engine, interrupts the main thread while that compiles.
        self._lock = RLock()
        self._sessions: OrderedDict[Key, Session | PixelSession] = OrderedDict()
        self._process = 0

    def get(self, key: Key) -> Session | PixelSession:
        """Return the session for `key`, compiling it when it is not there.

        Raises:
            UsageError: this process was forked from the one that compiles.
        """
        # Before the lock, which another thread may have held at the fork.
        if self._process not in (0, os.getpid()):
            raise UsageError(
                f"the engine ran in process {self._process}, and this one was forked from it without the threads "
                'of its backend; start workers with multiprocessing\'s "spawn" (multiprocessing_context="spawn" of a '
                "DataLoader), or run nothing before they are forked"
            )
        with self._lock:
            if key not in self._sessions:
                self._process = os.getpid()
                computing()
                self._make_room(key)
                self._sessions[key] = self._compile(key)
            self._sessions.move_to_end(key)
            while len(self._sessions) > self._capacity:
                self._sessions.popitem(last=False)
            return self._sessions[key]

    def _make_room(self, key: Key) -> None:
        if self._room is None:
            return
        free = self._room.limit() - self._room.held_bytes(key) - sum(map(self._room.held_bytes, self._sessions))
        given_up = False
        while free < 0 and self._sessions:
            free += self._room.held_bytes(self._sessions.popitem(last=False)[0])
            given_up = True
        if given_up:
            self._room.release()

    def forget(self, unwanted: Callable[[Key], bool]) -> None:
        """Give up the sessions that `unwanted` tells, so that their memory is free once nobody runs them."""
        with self._lock:
            for key in [key for key in self._sessions if unwanted(key)]:
                del self._sessions[key]
