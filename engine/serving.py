"""Choose the backend that serves a model: here by a stated order of preference."""

from __future__ import annotations

import torch

from tilefuse.backends import registry
from tilefuse.backends.base import Precision
from tilefuse.errors import BackendError
from tilefuse.model import Model
from tilefuse.options import Options
from tilefuse.planner import Serving


def choose(model: Model, options: Options) -> tuple[Serving, ...]:
    """List the backends that can serve: the named one alone, or all in the order of preference.

    The first is the choice; the others stand by for windows that it can't compile after all.

    Raises:
        UsageError: no backend has that name.
        BackendError: the named backend, or none, can serve; each is listed with its reason.
    """
    device = _device(options.device)
    # Leaving fp32 needs a check of the result that only measuring gives, so auto stays exact.
    precision: Precision = "fp32" if options.precision == "auto" else options.precision
    if options.backend == "auto":
        offered = registry.preference(model, device, precision)
    else:
        backend = registry.get(options.backend)
        offered = [(backend.name, backend.available() or backend.refusal(model, device, precision))]
    how = "first in the order of preference that can serve" if options.backend == "auto" else "as asked"
    serving: list[Serving] = []
    skipped: list[str] = []
    for name, reason in offered:
        if reason is None:
            serving.append(Serving(name, device, precision, (f"{name}: {how}", *skipped)))
        else:
            skipped.append(f"{name} can't serve: {reason}")
    if not serving:
        raise BackendError(f"{model.name} can't run in {precision} on {device}: {'; '.join(skipped)}")
    return tuple(serving)


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError(f"device {asked} was asked for, but torch {torch.__version__} finds no CUDA device")
    return asked
