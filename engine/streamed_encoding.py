"""The result of a streamed job is encoded in a thread of its own, while the windows below are computed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tilefuse.interruptible import THREAD_NAME
from tilefuse.storage.gate import RowGate

# Threads that compute go first where there are more threads than processors.
_NICENESS = 5


@contextmanager
def beside(encode: Callable[[], None], gate: RowGate) -> Iterator[Callable[[], None]]:
    """Run `encode` in another thread while the block finishes the rows of `gate`, and wait for both.

    Gives a function that raises what `encode` has failed of, for the block to call now and then. When the block fails
    the gate is closed, `encode` ends, and the block's error goes on.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            _step_back()
            encode()
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            errors.append(error)

    def check() -> None:
        if errors:
            raise errors[0]

    thread = threading.Thread(target=run, name=f"{THREAD_NAME}-encode", daemon=True)
    thread.start()
    try:
        yield check
    except BaseException:
        gate.close()
        raise
    finally:
        thread.join()
    check()


def _step_back() -> None:
    """Lower the priority of this thread and of those it starts, where a system knows priorities of threads."""
    if sys.platform != "linux":
        return
    # A sandbox may forbid it; then the threads share.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
