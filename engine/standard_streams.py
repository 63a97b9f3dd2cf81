"""Standard streams that the command line can rely on, whatever it was started with."""

from __future__ import annotations

import io
import os
import sys

_STANDARD_ERROR = 2


def prepare_streams() -> None:
    """Open the standard streams that are closed, and let standard output take any character.

    What was closed (`2>&-`, a daemon) becomes the null device: a file that is opened later would get its number, and
    with it what libraries print. Characters that the encoding of standard output lacks are escaped, as Python does in
    standard error.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it lives as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def abandon_output() -> None:
    """Send what standard output still holds nowhere: it can't be written, and leaving would try again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
