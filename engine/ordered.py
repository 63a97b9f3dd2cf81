"""Work done in threads whose results are wanted in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tilefuse.interruptible import THREAD_NAME

Item = TypeVar("Item")
Made = TypeVar("Made")

# Items that are worked on or wait for the ones before; one that takes long must not hold the others up.
AHEAD = 16


def in_order(items: Iterable[Item], work: Callable[[Item], Made], threads: int, ahead: int = AHEAD) -> Iterator[Made]:
    """Call `work` on each item in `threads` threads and give the results in the items' order.

    Items are taken in the caller's thread, `ahead` of what is given.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, f"{THREAD_NAME}-pack") as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
