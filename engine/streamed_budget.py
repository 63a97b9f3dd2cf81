"""How a streamed job shares its memory out: windows, reader, encoder, and cores that wait for the encoder."""

from __future__ import annotations

from tilefuse.model import Model
from tilefuse.planner import Plan, Request, Serving, plan
from tilefuse.storage.base import RasterInfo
from tilefuse.storage.encoding_memory import encoder_bytes
from tilefuse.storage.registry import encodes_rows
from tilefuse.streamed_job import StreamJob
from tilefuse.streamed_windows import Planes
from tilefuse.tiling import Grid

_CACHE_BYTES = 64 << 20
# What threads of several libraries keep of what they freed, between two times that it is given back.
_FREED_BYTES = 48 << 20
# Three rows of windows of a result 24,000 pixels wide: one that is computed, two that are encoded.
_MOST_KEPT_BYTES = 192 << 20


def reader_bytes(memory: int) -> int:
    """Bytes of a budget that are the reader's."""
    return min(_CACHE_BYTES, memory // 8)


def planned_windows(
    model: Model, job: StreamJob, info: RasterInfo, planes: Planes, request: Request, serving: Serving
) -> tuple[Plan, Grid]:
    """Plan windows of a raster; a budget of a GPU's memory has nothing in it of what this machine's holds.

    Raises:
        CapacityError: no window fits beside what reader and encoder hold.
    """
    size = len(planes.groups), info.height, info.width
    if serving.device.startswith("cuda"):
        return plan(model, size, 0, request, serving, one_by_one=True)
    found = model.geometry()
    result = *found.output_size(info.height, info.width), planes.total_bands
    fixed = info.decoded_bytes + encoder_bytes(job.output.suffix.lower(), result, info.dtype.itemsize)
    held = planes.held_bytes_per_px(found.scale, info.dtype.itemsize)

    def kept_back(memory: int) -> int:
        return reader_bytes(memory) + min(_FREED_BYTES, memory // 8) + fixed

    return plan(model, size, 0, request, serving, held, kept_back, one_by_one=True)


def kept_bytes(job: StreamJob, made: Plan) -> int:
    """Tell how many bytes of finished cores may wait in memory for the encoder.

    That is half of what the plan leaves of the budget, as it is an estimate, and no more than is of use.
    """
    # An .npy result is encoded by being stored, WebP after all else, and what a GPU's budget leaves is none of this
    # machine's memory.
    if not encodes_rows(job.output.suffix.lower()) or made.device.startswith("cuda"):
        return 0
    return max(0, min(_MOST_KEPT_BYTES, (made.memory_bytes - made.peak_bytes) // 2))
