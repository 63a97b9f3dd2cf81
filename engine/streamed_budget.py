"""How a streamed job shares its memory out: windows, reader, encoder, and cores that wait for the encoder."""

from __future__ import annotations

from tilefuse.model import Model
from tilefuse.planner import Plan, Request, Serving, plan
from tilefuse.streamed_job import StreamJob
from tilefuse.tiling import Grid

# What the encoders hold: a few rows of tiles each.
_ENCODER_BYTES = 64 << 20
_CACHE_BYTES = 64 << 20
# Three rows of windows of a result 24,000 pixels wide: one that is computed, two that are encoded.
_MOST_KEPT_BYTES = 192 << 20


def reader_bytes(memory: int) -> int:
    """Bytes of a budget that are the reader's."""
    return min(_CACHE_BYTES, memory // 8)


def _kept_back(memory: int) -> int:
    """Bytes of a budget that are the reader's and the encoder's."""
    return reader_bytes(memory) + min(_ENCODER_BYTES, memory // 4)


def planned_windows(
    model: Model, size: tuple[int, int, int], request: Request, serving: Serving, held_per_px: float
) -> tuple[Plan, Grid]:
    """Plan windows of a raster; a budget of a GPU's memory has nothing in it of what this machine's holds."""
    if serving.device.startswith("cuda"):
        return plan(model, size, 0, request, serving)
    return plan(model, size, 0, request, serving, held_per_px, _kept_back)


def kept_bytes(job: StreamJob, made: Plan) -> int:
    """Tell how many bytes of finished cores may wait in memory for the encoder.

    That is half of what the plan leaves of the budget, as it is an estimate, and no more than is of use.
    """
    # An .npy result is encoded by being stored, and what a GPU's budget leaves is none of this machine's memory.
    if job.output.suffix.lower() == ".npy" or made.device.startswith("cuda"):
        return 0
    return max(0, min(_MOST_KEPT_BYTES, (made.memory_bytes - made.peak_bytes) // 2))
