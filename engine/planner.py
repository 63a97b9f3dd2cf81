"""Plan a job: which backend, which window, how much memory, and why. Nothing runs here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from tilefuse.backends.base import Precision
from tilefuse.backends.pixels import LANES
from tilefuse.cost import cost_of
from tilefuse.errors import CapacityError, ImageError
from tilefuse.footprint import Footprint
from tilefuse.graph import Graph, Shape
from tilefuse.machine import cache_bytes, format_at_least, format_bytes
from tilefuse.model import Model
from tilefuse.tiling import Grid, grid

# Edges worth considering, in input pixels: powers of two and their midpoints.
TILE_CANDIDATES = (2048, 1536, 1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32, 16)
# Slowdown of windows whose activations leave the last-level cache. Measured for a computed pixel, tile 1024 or the
# whole image against 256 and 128, on two cores: 0.96 to 1.00 with ESPCN and 1.06 to 1.07 with Compact in OpenVINO, 1.06
# to 1.13 with Compact in ncnn.
CACHE_MISS_FACTOR = 1.05
# Cost of one more window (slicing, conversion, a call into the backend), as pixels of computation.
WINDOW_OVERHEAD_PX = 2000
# Libraries hold a workspace and packed weights beside the activations the graph knows of.
_FACTOR = 2.0
# ncnn keeps transformed copies of activations in pools: 6.0 was measured for ESPCN x4, 5.6 to 8.0 for Compact x4.
_FACTORS = {"ncnn": 7.0}
# Callers of one session take turns at one arena; only their pixels, of two bytes at most, lie there beside each other.
_ONE_ARENA = ("triton_fused",)
_STAGED_BYTES = 2


def assumed_factor(backend: str) -> float:
    """Return the bytes that a backend is taken to hold for each byte of live activations, before it is measured."""
    return _FACTORS.get(backend, _FACTOR)


def calls_held(backend: str, workers: int) -> int:
    """Return how many of the calls that run at once hold activations of their own."""
    return 1 if backend in _ONE_ARENA else workers


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    `tile` None is auto, 0 the whole image; `halo_px` None is the exact halo; `memory` 0 is auto; `windows_only`
    excludes the whole image as one window. `rows` asks for the row schedule; `tile` is then the rows of a stripe.
    """

    tile: int | None = None
    halo_px: int | None = None
    memory: int = 0
    windows_only: bool = False
    rows: bool = False


@dataclass(frozen=True)
class Plan:
    """Every choice for one image size. Sizes are input pixels unless named otherwise; `str(plan)` explains."""

    backend: str
    device: str
    precision: Precision
    height: int
    width: int
    output_height: int
    output_width: int
    scale: Fraction
    tile: int
    halo_px: int
    alignment: int
    window: tuple[int, int]
    windows: int
    images: int
    exact: bool
    flops: int
    peak_bytes: int
    memory_bytes: int
    why: tuple[str, ...]
    workers: int = 1
    seconds: float | None = None
    batch: int = 1
    rows: bool = False

    @property
    def schedule(self) -> str:
        """`rows` when stripes go through once, `whole` when one window takes the image, else `windows`."""
        if self.rows:
            return "rows"
        return "whole" if self.windows == 1 else "windows"

    def __str__(self) -> str:
        shape = f"{self.window[1]}x{self.window[0]}"
        layout = f"whole image, one window of {shape}" if self.windows == 1 else f"{self.windows} windows of {shape}"
        if self.rows:
            layout = f"{self.windows} stripes of {self.window[0]} rows, each computed once"
        layout += f", {self.batch} in one call" if self.batch > 1 else ""
        tiling = f"{layout}, halo {self.halo_px} px, alignment {self.alignment}"
        lines = [
            f"image     {self.width}x{self.height} -> {self.output_width}x{self.output_height} (x{self.scale})",
            f"backend   {self.backend} on {self.device}, {self.precision}",
            f"tiles     {tiling}, {'exact' if self.exact else 'approximate'}",
            f"work      {self.flops / 1e9:.1f} GFLOP{'' if self.seconds is None else f', about {self.seconds:.3g} s'}",
            f"memory    {format_bytes(self.peak_bytes)} estimated of {format_bytes(self.memory_bytes)} allowed",
        ]
        return "\n".join([*lines, *(f"why       {reason}" for reason in self.why)])


@dataclass(frozen=True)
class Timed:
    """A recorded measurement: a window of `window_px` input pixels, of a tile, took `seconds`."""

    tile: int
    window_px: int
    seconds: float


@dataclass(frozen=True)
class Serving:
    """The backend the plan is made for, and why it was chosen.

    It runs `batch` windows in one call, and `workers` calls at once with `threads` on each (0: all of the machine's).
    `timed` is what was measured of it, empty before; `measured_factor` the bytes it was seen to hold for each byte of
    live activations, None before.
    """

    backend: str
    device: str
    precision: Precision
    why: tuple[str, ...]
    threads: int = 0
    workers: int = 1
    timed: tuple[Timed, ...] = ()
    measured_factor: float | None = None
    batch: int = 1

    @property
    def memory_factor(self) -> float:
        """Bytes it holds for each byte of live activations: as measured, else as assumed of its backend."""
        return assumed_factor(self.backend) if self.measured_factor is None else self.measured_factor


@dataclass(frozen=True)
class Layout:
    """A grid with what it costs: `seconds` where they were measured, else `cost` in pixels of computation."""

    grid: Grid
    tile: int
    flops: int
    peak_bytes: int
    cost: float
    seconds: float | None = None


def plan(
    model: Model,
    size: tuple[int, int, int],
    image_bytes: int,
    request: Request,
    serving: Serving,
    held_per_px: float = 0.0,
    kept_back: Callable[[int], int] = lambda _: 0,
    *,
    one_by_one: bool = False,
) -> tuple[Plan, Grid]:
    """Choose the windows of an image of `size` (images, height, width).

    The images' windows at one place go through the network in one call, or `one_by_one` in the memory of one.

    `image_bytes` is what the job holds beside the windows, the image and its result, and `kept_back` what it keeps of
    an amount of memory for its buffers. `held_per_px` is what it holds for each input pixel of a window beside the
    network's activations.

    Raises:
        CapacityError: no window that the request allows fits the memory.
    """
    images, height, width = size
    footprint = model.geometry()
    if min(footprint.output_size(height, width)) < 1:
        raise ImageError(f"an image of {width}x{height} is smaller than what {model.name} cuts off at the borders")
    whole_only = bool(footprint.global_ops) and request.halo_px is None
    if whole_only and (request.tile or request.windows_only):
        raise CapacityError(
            f"tiling is refused: {_seeing(footprint.global_ops)} the whole image. "
            "Use tile 0, or give a halo in pixels and accept an approximate result"
        )
    tiles: Sequence[int] = TILE_CANDIDATES if request.windows_only else (0, *TILE_CANDIDATES)
    if request.tile is not None:
        tiles = (request.tile,)
    elif whole_only:
        tiles = (0,)
    else:
        measured_tiles = [timed.tile for timed in serving.timed if timed.tile or not request.windows_only]
        tiles = [t for t in (*tiles, *measured_tiles) if t < max(height, width)] or tiles[-1:]

    beside = image_bytes + kept_back(request.memory)
    candidates = [
        _layout(model, size, tile, beside, request.halo_px, held_per_px, serving, 1 if one_by_one else images)
        for tile in dict.fromkeys(tiles)
    ]
    if request.windows_only:
        candidates = [c for c in candidates if len(c.grid) > 1] or candidates
    measured = [c for c in candidates if c.seconds is not None] or candidates
    # What was measured goes before what is only estimated, and what fits before both.
    fitting = [c for c in measured if c.peak_bytes <= request.memory]
    fitting = fitting or [c for c in candidates if c.peak_bytes <= request.memory]
    if not fitting and serving.workers * serving.batch > 1:
        alone = replace(serving, workers=1, batch=1)
        return plan(model, size, image_bytes, request, alone, held_per_px, kept_back, one_by_one=one_by_one)
    if not fitting:
        least = min(candidates, key=lambda c: c.peak_bytes)
        enough = _enough(least.peak_bytes - kept_back(request.memory), kept_back)
        raise CapacityError(_does_not_fit(footprint, request, least, whole_only, enough))
    best = min(fitting, key=lambda c: c.cost if c.seconds is None else c.seconds)
    why = [*serving.why, _why_tile(best, candidates, request, footprint, whole_only)]
    halo_px = footprint.halo if request.halo_px is None else request.halo_px
    exact = (
        len(best.grid) == 1
        or request.halo_px is None
        or (request.halo_px >= footprint.halo and not footprint.global_ops)
    )
    out_h, out_w = best.grid.output
    made = Plan(
        backend=serving.backend,
        device=serving.device,
        precision=serving.precision,
        height=height,
        width=width,
        output_height=out_h,
        output_width=out_w,
        scale=footprint.scale,
        tile=best.tile,
        halo_px=halo_px,
        alignment=footprint.alignment,
        window=best.grid.window,
        windows=len(best.grid),
        images=images,
        exact=exact,
        flops=images * best.flops,
        peak_bytes=best.peak_bytes,
        memory_bytes=request.memory,
        why=tuple(why),
        workers=min(serving.workers, -(-len(best.grid) // serving.batch)),
        seconds=best.seconds,
        batch=min(serving.batch, len(best.grid)),
    )
    return made, best.grid


def input_shapes(graph: Graph, batch: int, window: tuple[int, int]) -> tuple[Shape, ...]:
    """Shapes of the graph's inputs for a batch of windows."""
    free = (batch, 0, *window)
    return tuple(tuple(free[i] if s is None else s for i, s in enumerate(spec.shape)) for spec in graph.inputs)


def _layout(
    model: Model,
    size: tuple[int, int, int],
    tile: int,
    image_bytes: int,
    halo_px: int | None,
    held_per_px: float,
    serving: Serving,
    images_at_once: int,
) -> Layout:
    _, height, width = size
    cut = grid(height, width, tile, model.geometry(), halo_px)
    live = weights = work = 0
    # Of a model that could not be captured nothing is known but that it sees the whole image.
    if model.graph is not None:
        cost_of_one = cost_of(model.graph, input_shapes(model.graph, 1, cut.window))
        live, weights, work = cost_of_one.live_bytes, cost_of_one.weight_bytes, len(cut) * cost_of_one.flops
    window_px = cut.window[0] * cut.window[1]
    on_cpu = not serving.device.startswith("cuda")
    slowdown = CACHE_MISS_FACTOR if on_cpu and live > cache_bytes() else 1.0
    cost = len(cut) * (window_px * slowdown + WINDOW_OVERHEAD_PX)
    at_once = min(serving.workers * serving.batch, len(cut))
    computed = min(calls_held(serving.backend, serving.workers) * serving.batch, len(cut))
    held = computed * images_at_once * serving.memory_factor * live + at_once * held_per_px * window_px
    if serving.backend in _ONE_ARENA:
        held += LANES * min(serving.batch, len(cut)) * images_at_once * window_px * _staged_bytes_per_px(model)
    peak_bytes = int(held) + weights + image_bytes
    return Layout(cut, tile, work, peak_bytes, cost, _measured_seconds(serving, tile, len(cut), window_px))


def _staged_bytes_per_px(model: Model) -> float:
    taken, given = model.image_channels
    return _STAGED_BYTES * (taken + given * float(model.geometry().scale) ** 2)


def _measured_seconds(serving: Serving, tile: int, windows: int, window_px: int) -> float | None:
    """Estimate an image from what was measured of its tile; other images have windows of other sizes."""
    timed = next((t for t in serving.timed if t.tile == tile), None)
    return None if timed is None else windows * timed.seconds * window_px / timed.window_px


def _why_tile(best: Layout, all_: Sequence[Layout], request: Request, footprint: Footprint, whole: bool) -> str:
    if request.tile is not None:
        return f"tile {best.tile}: as asked"
    if whole:
        return f"whole image: {_seeing(footprint.global_ops)} all of it"
    image_px = best.grid.padded[0] * best.grid.padded[1]
    computed = len(best.grid) * best.grid.window[0] * best.grid.window[1] / image_px
    too_large = sum(1 for c in all_ if c.peak_bytes > request.memory)
    chosen = "whole image" if len(best.grid) == 1 else f"tile {best.tile}"
    refused = f"; {too_large} of {len(all_)} sizes do not fit the memory" if too_large else ""
    how = "least estimated time" if best.seconds is None else "least measured time"
    return f"{chosen}: {how}, {computed:.2f}x the image's pixels are computed{refused}"


def _enough(needed: int, kept_back: Callable[[int], int]) -> int:
    """Return the least memory that leaves `needed` bytes beside what is kept back of it."""
    enough = needed
    # Of more memory more is kept back, up to a bound: what is missing shrinks with each step.
    while (missing := needed + kept_back(enough) - enough) > 0:
        enough += missing
    return enough


def _does_not_fit(footprint: Footprint, request: Request, least: Layout, whole_only: bool, least_bytes: int) -> str:
    needs = f"needs about {format_bytes(least_bytes)} and {format_bytes(request.memory)} is allowed"
    enough = format_at_least(least_bytes)
    where = f"{least.grid.width}x{least.grid.height} as "
    where += "one window" if len(least.grid) == 1 else f"windows of {least.grid.window[1]}x{least.grid.window[0]}"
    if whole_only:
        return (
            f"{where} {needs}, and tiling is refused: {_seeing(footprint.global_ops)} the whole image. "
            f"Allow at least {enough}, or give a halo in pixels and accept an approximate result"
        )
    if request.tile is not None:
        return f"{where} {needs}. Allow at least {enough}, or leave the tile to the planner"
    return f"{where} {needs}, and no smaller window helps. Allow at least {enough}"


def _seeing(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'sees' if len(names) == 1 else 'see'}"
