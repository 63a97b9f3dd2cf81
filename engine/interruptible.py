"""Work that a signal can stop at once, even inside a library's call.

Python handles signals between bytecodes of the main thread, so a main thread inside a long call into a library is deaf.
The work runs in a second thread while the main thread waits in short steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_STEP_SECONDS = 0.05
# After this long the caller goes on without the thread: a library's call can't be cut short.
GRACE_SECONDS = 1.0
THREAD_NAME = "tilefuse-work"


class Terminated(KeyboardInterrupt):
    """SIGTERM came: whoever cleans up after Ctrl-C does so after it."""


def run_interruptibly(work: Callable[[Callable[[], bool]], Result]) -> Result:
    """Run `work(cancelled)` and return its result or raise its error.

    When the waiting thread is interrupted, `cancelled()` becomes true, the work has `GRACE_SECONDS` to end, and the
    interruption goes on.
    """
    stop = threading.Event()
    outcome: list[Result] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(work(stop.is_set))
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            errors.append(error)

    thread = threading.Thread(target=target, name=THREAD_NAME, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_STEP_SECONDS)
    except BaseException:
        # KeyboardInterrupt, Terminated: whatever interrupts goes on once the work has been told.
        stop.set()
        thread.join(GRACE_SECONDS)
        raise
    if errors:
        raise errors[0]
    return outcome[0]


def still_working() -> bool:
    """Tell whether a library's call of interrupted work has not returned yet."""
    return any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate())
