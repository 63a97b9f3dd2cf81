"""Processes forked from one that computes: OpenMP's threads stay behind, and torch and ncnn wait for them for ever.

A process that loaded a model has them, as loading runs it. With one thread nothing is waited for.
"""

from __future__ import annotations

import os
import sys

_computing = False
_left_behind = False


def computing() -> None:
    """Say that this process has threads of OpenMP from now on."""
    global _computing
    _computing = True


def threads_left_behind() -> bool:
    """Tell whether this process was forked from one that had computed: it must compute in one thread."""
    return _left_behind


def _after_fork() -> None:
    global _left_behind
    if _computing:
        _left_behind = True
        sys.modules["torch"].set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
