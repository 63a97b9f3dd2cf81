"""Planes through an engine: an image of as many channels as the network takes, whatever they mean, in fp32 out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tilefuse.errors import BackendError, ImageError
from tilefuse.execute import execute
from tilefuse.memory import ArrayReader, ArrayWriter, Pixels
from tilefuse.planner import plan
from tilefuse.runners import FloatRunner

if TYPE_CHECKING:
    from tilefuse.api import Engine


def run_planes(engine: Engine, planes: Pixels) -> NDArray[np.float32]:
    """Run planes [H, W, C] and return the network's own [H', W', C'], neither rounded nor clipped.

    uint8 and uint16 span 0..1, float32 is taken as it is; one channel goes through a network of more as equal ones.
    The engine's plan, its tiles and its memory budget apply.

    Raises:
        ImageError: another number of channels than the network's.
        CapacityError: it does not fit the memory budget.
        BackendError: no backend compiles the windows.
    """
    height, width, depth = planes.shape
    taken, given = engine.model.image_channels
    if depth not in (1, taken):
        raise ImageError(f"planes of {depth} channels; {engine.model.name} takes {taken}")
    result = np.empty((1, *engine.footprint.output_size(height, width), given), np.float32)
    failed: list[str] = []
    for serving in engine.candidates:
        made, grid = plan(engine.model, (1, height, width), planes.nbytes + result.nbytes, engine.request(), serving)
        try:
            session = engine.session(serving, made.images, grid.window)
        except BackendError as error:
            failed.append(f"{serving.backend} can't compile this window: {error}")
            continue
        execute(grid, FloatRunner(session), ArrayReader(planes[None], taken), ArrayWriter(result))
        image: NDArray[np.float32] = result[0]
        return image
    raise BackendError("; ".join(failed))
