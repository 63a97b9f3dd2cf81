"""fp32 that means fp32: torch's reduced-precision shortcuts, switched off while a session runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_lock = threading.RLock()
_restore = contextlib.ExitStack()
_users = 0


@contextlib.contextmanager
def exact_fp32() -> Iterator[None]:
    """Forbid TF32 and bf16 inside fp32 convolutions and matrix products.

    torch keeps these switches for the whole process, so users are counted: the first one in saves and sets them, the
    last one out puts them back.
    """
    global _users, _restore
    with _lock:
        if _users == 0:
            _restore = _forbid()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _restore.close()


def _forbid() -> contextlib.ExitStack:
    restore = contextlib.ExitStack()
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    for switch in (backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.conv, mkldnn.matmul):
        restore.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
    # The older switches are set as well: torch refuses to read them once they contradict the newer ones.
    restore.callback(setattr, cudnn, "allow_tf32", cudnn.conv.fp32_precision == "tf32")
    cudnn.allow_tf32 = False
    with contextlib.suppress(RuntimeError):
        restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")
    mkldnn.conv.fp32_precision = "ieee"
    return restore
