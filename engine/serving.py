"""List the backends that can serve a model, in the order that is predicted; measuring may choose another one."""

from __future__ import annotations

import torch

from tilefuse.backends import registry
from tilefuse.backends.base import Precision
from tilefuse.candidates import allowed_backends
from tilefuse.cost_model import predicted_compile_seconds, predicted_image_seconds, predicted_seconds
from tilefuse.errors import BackendError
from tilefuse.machine import cpu_threads
from tilefuse.model import Model
from tilefuse.options import Options
from tilefuse.planner import Serving, input_shapes

_NOMINAL_PX = (512, 512)
_NOMINAL_IMAGES = 16
_NOMINAL_RUNS = 10


def choose(model: Model, options: Options) -> tuple[Serving, ...]:
    """List the backends that can serve: the named one alone, or all allowed ones, the fastest by prediction first.

    The first is the choice until something is measured; the others stand by for windows that it can't compile.

    Raises:
        UsageError: no backend has that name, or one in TILEFUSE_BACKENDS.
        BackendError: the named backend, or none, can serve; each is listed with its reason.
    """
    device = device_of(options.device)
    # Leaving fp32 needs a check of the result that only measuring gives, so auto stays exact.
    precision: Precision = "fp32" if options.precision == "auto" else options.precision
    allowed = allowed_backends(options.backend)
    offered = [pair for pair in registry.preference(model, device, precision) if pair[0] in allowed]
    how = "as asked"
    if options.backend == "auto":
        how = "predicted to be the fastest of those that can serve; not measured yet"
        # Sorting is stable: of a model whose graph is unknown, nothing is predicted and the stated order holds. Nobody
        # waits for a compiler before the first image unless there is nothing else.
        if device == "cpu":
            offered.sort(key=lambda pair: (pair[0] == "inductor", _predicted(model, pair[0], precision)))
    serving: list[Serving] = []
    skipped: list[str] = []
    for name, reason in offered:
        if reason is None:
            # Telling takes a lowering of the whole graph: only for the choice.
            told = () if serving else registry.notes(name, model)
            serving.append(Serving(name, device, precision, (f"{name}: {how}", *told, *skipped)))
        else:
            skipped.append(f"{name} can't serve: {reason}")
    if not serving:
        raise BackendError(f"{model.name} can't run in {precision} on {device}: {'; '.join(skipped)}")
    return tuple(serving)


def _predicted(model: Model, backend: str, precision: Precision) -> float:
    """Seconds for an image of a usual size, with a share of what compiling takes: ten such images are expected."""
    if model.graph is None:
        return 0.0
    if model.footprint is None:
        shapes = input_shapes(model.graph, _NOMINAL_IMAGES, (0, 0))
        seconds = predicted_seconds(model, backend, precision, shapes, cpu_threads())
    else:
        seconds = predicted_image_seconds(model, backend, precision, (1, *_NOMINAL_PX), cpu_threads())
    return seconds + predicted_compile_seconds(model, backend) / _NOMINAL_RUNS


def device_of(asked: str) -> str:
    """Name the device that an option means: `auto` is a GPU where there is one.

    Raises:
        BackendError: a GPU was asked for, and there is none.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError(f"device {asked} was asked for, but torch {torch.__version__} finds no CUDA device")
    return asked
