"""Choose the backend that serves a model: here by a stated order of preference."""

from __future__ import annotations

from tilefuse.backends import registry
from tilefuse.backends.base import Backend, Precision
from tilefuse.errors import BackendError
from tilefuse.model import Model
from tilefuse.options import Options
from tilefuse.planner import Serving


def choose(model: Model, options: Options) -> tuple[Backend, Serving]:
    """Pick the named backend, or the first in the order of preference that can serve.

    Raises:
        UsageError: no backend has that name.
        BackendError: the named backend, or none, can serve; each is listed with its reason.
    """
    device = _device(options.device)
    # Leaving fp32 needs a check of the result that only measuring gives, so auto stays exact.
    precision: Precision = "fp32" if options.precision == "auto" else options.precision
    names = list(registry.BACKENDS) if options.backend == "auto" else [options.backend]
    reasons = []
    for name in names:
        backend = registry.get(name)
        reason = backend.available() or backend.refusal(model, device, precision)
        if reason is None:
            how = "as asked" if options.backend != "auto" else "first in the order of preference that can serve"
            passed = [f"{skipped}: {why}" for skipped, why in reasons]
            return backend, Serving(name, device, precision, (f"{name}: {how}", *passed))
        reasons.append((name, reason))
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons)
    raise BackendError(f"no backend can serve {model.name} in {precision} on {device}: {listed}")


def _device(asked: str) -> str:
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError(f"device {asked} was asked for, but torch {torch.__version__} finds no CUDA device")
    return asked
