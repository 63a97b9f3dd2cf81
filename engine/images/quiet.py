"""Silence for decoders that print: libtiff writes to the process's standard error whatever Python is told."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Send everything written to file descriptor 2 to the null device while the block runs, and ignore warnings.

    For programs that own their standard error, such as the command line, which reports a bad image in one line of its
    own; it acts on the whole process, so the library itself never calls it.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(null)
        os.close(kept)
