"""Kernels as operators of torch: functions that give launches, which run on memory and are planned without."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch

from tilefuse.kernels.launch import Launch
from tilefuse.kernels.planning import current

Launches = Callable[..., Iterable[Launch]]


def operator(name: str, *, writes: tuple[str, ...], schema: str | None = None) -> Callable[[Launches], Any]:
    """Register a function that gives the launches of a call as an operator without a result.

    Such an operator can be exported and compiled around. Called with tensors that have shapes only, it has nothing to
    make; while `planning`, its launches are collected then.

    Args:
        name: as "tilefuse::pad".
        writes: names of the tensors that its kernels write.
        schema: of its arguments, where torch can't infer it from the annotations.
    """

    def register(launches: Launches) -> Any:
        def run(*arguments: Any) -> None:
            for launch in launches(*arguments):
                launch.run()

        def plan(*arguments: Any) -> None:
            planned = current()
            if planned is not None:
                planned.launches.extend(launches(*arguments))

        # What torch infers the schema from.
        signature = inspect.signature(launches, eval_str=True).replace(return_annotation=None)
        vars(run)["__signature__"] = signature
        made = torch.library.custom_op(name, run, mutates_args=writes, schema=schema)
        made.register_fake(plan)
        return made

    return register
