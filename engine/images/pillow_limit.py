"""Pillow's size limit, lifted for single images; it is one number for the process and belongs to the host program."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

_lock = threading.Lock()
# Sizes now allowed past the host's limit, one for each image being decoded; the host's limit while there are any.
_lifted: list[int] = []
_host_limit: list[int | None] = []


@contextmanager
def allowing(pixels: int) -> Iterator[None]:
    """Let Pillow decode an image of `pixels` pixels that the caller has found acceptable, from any thread."""
    with _lock:
        limit = _host_limit[0] if _host_limit else Image.MAX_IMAGE_PIXELS
        needed = limit is not None and pixels > limit
        if needed:
            if not _lifted:
                _host_limit.append(limit)
            _lifted.append(pixels)
            Image.MAX_IMAGE_PIXELS = max(_lifted)
    try:
        yield
    finally:
        if needed:
            with _lock:
                _lifted.remove(pixels)
                Image.MAX_IMAGE_PIXELS = max(_lifted) if _lifted else _host_limit.pop()
