"""Plan the row schedule: stripes of the image's full width, as many rows each as the memory allows."""

from __future__ import annotations

import math
from itertools import pairwise

from tilefuse.candidates import allowed_backends
from tilefuse.cost import cost_of, weight_bytes
from tilefuse.cost_model import predicted_image_seconds
from tilefuse.errors import CapacityError
from tilefuse.graph import Graph
from tilefuse.machine import format_at_least, format_bytes
from tilefuse.model import Model
from tilefuse.planner import Plan, Request, Serving, assumed_factor, input_shapes, plan
from tilefuse.streaming import peak_bytes
from tilefuse.tiling import Grid, Span

# Rows a stripe, in input pixels: fewer cost calls and copies, more cost memory and gain nothing.
STRIPES = (64, 32, 16, 8, 4)
BACKEND = "torch_eager"
# Windows have to be this many times slower by prediction before rows take their place unasked.
_CLEARLY = 1.2


def plan_rows(
    model: Model, size: tuple[int, int, int], image_bytes: int, request: Request, serving: Serving
) -> tuple[Plan, Grid]:
    """Plan an image of `size` (images, height, width); `image_bytes` are held beside the network's own.

    Raises:
        CapacityError: the network sees the whole image, or the smallest stripe does not fit the memory.
    """
    images, height, width = size
    found, graph = model.geometry(), _graph(model)
    step = found.y.alignment
    stripes = [max(step, rows // step * step) for rows in ((request.tile,) if request.tile else STRIPES)]
    weights = weight_bytes(graph)
    for stripe in dict.fromkeys(stripes):
        cut = row_grid(model, height, width, stripe)
        # The first stripe fills every layer, the ones behind it show what stays.
        live = images * peak_bytes(graph, *cut.padded, stripe, [span.core_stop for span in cut.rows[:3]])
        peak = int(assumed_factor(BACKEND) * live) + weights + image_bytes
        if peak <= request.memory:
            break
    else:
        raise CapacityError(
            f"{width}x{height} in stripes of {stripe} rows needs about {format_bytes(peak)} and "
            f"{format_bytes(request.memory)} is allowed. Allow at least {format_at_least(peak)}"
        )
    out_h, out_w = cut.output
    made = Plan(
        backend=BACKEND,
        device=serving.device,
        precision="fp32",
        height=height,
        width=width,
        output_height=out_h,
        output_width=out_w,
        scale=found.scale,
        tile=stripe,
        halo_px=found.halo,
        alignment=found.alignment,
        window=cut.window,
        windows=len(cut),
        images=images,
        exact=True,
        flops=images * cost_of(graph, input_shapes(graph, 1, cut.padded)).flops,
        peak_bytes=peak,
        memory_bytes=request.memory,
        why=(*serving.why, f"stripes of {stripe} rows: every row of every layer is computed once"),
        rows=True,
    )
    return made, cut


def plan_picture(
    model: Model, size: tuple[int, int, int], image_bytes: int, request: Request, serving: Serving
) -> tuple[Plan, Grid]:
    """Plan an image held in memory, as `planner.plan` does, or in rows: where they are asked for, where no window fits,
    and where windows overlap so much that rows are clearly faster by prediction.

    Raises:
        CapacityError: neither fits the memory.
    """
    if request.rows:
        return plan_rows(model, size, image_bytes, request, serving)
    try:
        made, cut = plan(model, size, image_bytes, request, serving)
    except CapacityError:
        why = f"{BACKEND}: no window fits the memory, rows do"
        rows = _plan_unasked(model, size, image_bytes, request, serving, why)
        if rows is None:
            raise
        return rows
    # What was measured goes before what is only predicted.
    predicted = made.windows > 1 and made.exact and made.seconds is None
    gain = _gain(model, size, made) if predicted else 0.0
    if gain < _CLEARLY:
        return made, cut
    why = f"{BACKEND}: rows are predicted to be {gain:.1f} times as fast as windows of {made.backend}"
    return _plan_unasked(model, size, image_bytes, request, serving, why) or (made, cut)


def _gain(model: Model, size: tuple[int, int, int], made: Plan) -> float:
    """Predict by how much rows are faster than windows: on a CPU they take about what the whole image takes."""
    overlap = made.windows * made.window[0] * made.window[1] / (made.height * made.width)
    windows = predicted_image_seconds(model, made.backend, made.precision, size, 1)
    rows = predicted_image_seconds(model, BACKEND, "fp32", size, 1)
    return overlap * windows / rows if math.isfinite(windows) else 0.0


def _plan_unasked(
    model: Model, size: tuple[int, int, int], image_bytes: int, request: Request, serving: Serving, why: str
) -> tuple[Plan, Grid] | None:
    """Plan rows unless something that was asked for excludes them, or they don't fit either."""
    asked = request.tile is not None or request.halo_px is not None or request.windows_only
    graph = model.graph
    if asked or graph is None or len(graph.inputs) != 1 or len(graph.outputs) != 1 or model.geometry().global_ops:
        return None
    if not serving.device.startswith("cpu") or BACKEND not in allowed_backends("auto"):
        return None
    try:
        return plan_rows(model, size, image_bytes, request, Serving(BACKEND, serving.device, "fp32", (why,)))
    except CapacityError:
        return None


def row_grid(model: Model, height: int, width: int, stripe: int) -> Grid:
    """Cut an image into stripes of `stripe` input rows: each window is the rows that the ones before have not read."""
    found = model.geometry()
    padded = found.y.padded(height, found.minimum_px), found.x.padded(width, found.minimum_px)
    out_h, out_w = found.output_size(height, width)
    core = max(1, int(stripe * found.y.scale))
    bounds = [*range(0, out_h, core), out_h]
    ahead = -(-found.y.after // found.y.alignment) * found.y.alignment
    reached = [0, *(min(padded[0], k * stripe + ahead) for k in range(1, len(bounds)))]
    # Once the image is read, what is left of the result comes with the last rows.
    count = next(k for k in range(1, len(reached)) if reached[k] == padded[0])
    bounds, reached = [*bounds[:count], out_h], reached[: count + 1]
    rows = tuple(
        Span(start, stop, low, high, 0)
        for (start, stop), (low, high) in zip(pairwise(reached), pairwise(bounds), strict=True)
    )
    columns = (Span(0, padded[1], 0, out_w, 0),)
    return Grid(height, width, padded, (stripe, padded[1]), (out_h, out_w), rows, columns)


def _graph(model: Model) -> Graph:
    if model.graph is None:
        raise CapacityError(f"rows can't go through {model.name}: its graph is unknown. Use schedule whole")
    return model.graph
