"""Compare backends on one picture: speed, memory, closeness to fp32, seams, and what each one makes of it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilefuse.api import load
from tilefuse.bench import DEFAULT, Row, Source, Trial, checked_names, machine_name, measure_ceilings, run_trials
from tilefuse.errors import BackendError, CapacityError, DeviceError, ModelError
from tilefuse.images import Picture, picture_to_array, read_image
from tilefuse.images.modes import full_scale
from tilefuse.images.outputs import shown
from tilefuse.model import Model
from tilefuse.options import MEASURE_SECONDS, checked_seconds
from tilefuse.quality import max_levels, ssim
from tilefuse.tasks import Told, measured_table, told

# Of larger results the middle is shown: a page is to open on a phone.
SHOWN_PX = 960
_SEAM_TILE_MAX, _SEAM_TILE_MIN = 256, 16


@dataclass(frozen=True)
class Seam:
    """Tiled against untiled on the float image: the largest difference as a share of full scale, or why there is none.

    `rounded` counts the samples that differ when both are rounded to 8 bits.
    """

    tile: int
    windows: int = 0
    max_difference: float | None = None
    rounded: int = 0
    refused: str | None = None


@dataclass(frozen=True, eq=False)
class Entry:
    """One backend: its row of the table, SSIM to fp32 torch, seams, and the part of its result that is shown."""

    row: Row
    ssim: float | None = None
    seam: Seam | None = None
    shown: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything a report says. `before` is the input enlarged by bicubic interpolation, cut as the results are.

    `measured` is the table that the choice was made by, and `why` what there is to say beside it.
    """

    model: str
    image: str
    machine: str
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    shown_size: tuple[int, int]
    rounds: int
    before: NDArray[np.uint8]
    measured: tuple[Told, ...]
    why: tuple[str, ...]
    notes: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def chosen(self) -> Entry:
        """The engine's own choice."""
        return next(entry for entry in self.entries if entry.row.name == DEFAULT)


def compare(
    source: Source,
    image: str | os.PathLike[str],
    *,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32", "bf16"),
    rounds: int = 5,
    measure_seconds: float = MEASURE_SECONDS,
) -> Comparison:
    """Run a picture through every backend in every precision, and through the engine's choice.

    The picture is compared as 8-bit gray or RGB; its transparency is left out. The choice is measured anew, within
    `measure_seconds`, and recorded.

    Raises:
        ImageError: the picture can't be read.
        ModelError: the model can't be loaded, or takes no image.
        UsageError: there is no such backend or precision, or the time is none.
        BackendError: the model can't be run at all.
    """
    names, wanted = checked_names(backends, precisions)
    checked_seconds(measure_seconds)
    pixels, notes = _eight_bit(read_image(image))
    engine = load(source)
    engine.model.geometry()
    trials = run_trials(
        source, pixels, names, wanted, rounds, measure_seconds, ceilings=measure_ceilings(wanted, engine.serving.device)
    )
    chosen = next(trial for trial in trials if trial.row.name == DEFAULT)
    if chosen.engine is None or chosen.result is None:
        raise BackendError(f"{engine.model.name} can't run on {image}: {chosen.row.refused}")
    reference = load(source, backend="torch_eager", precision="fp32", measure_seconds=0)(pixels)
    height, width = chosen.result.shape[:2]
    size, channels = pixels.shape[:2], 1 if pixels.ndim == 2 else 3
    measured = chosen.engine.measured(*size, channels=channels)
    table = measured_table(measured)
    why = chosen.engine.plan(*size, channels=channels).why
    return Comparison(
        model=engine.model.name,
        image=shown(Path(image).name),
        machine=machine_name(),
        input_size=(pixels.shape[1], pixels.shape[0]),
        output_size=(width, height),
        shown_size=(min(width, SHOWN_PX), min(height, SHOWN_PX)),
        rounds=rounds,
        before=_middle(np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))),
        measured=told(measured),
        why=tuple(reason for reason in why if reason not in table),
        notes=notes,
        entries=tuple(_entry(source, engine.model, pixels, reference, trial) for trial in trials),
    )


def _entry(
    source: Source, model: Model, pixels: NDArray[np.uint8], reference: NDArray[np.uint8], trial: Trial
) -> Entry:
    if trial.result is None:
        return Entry(trial.row)
    seam = None if trial.row.name == DEFAULT else _seam(source, model, pixels, trial.row)
    return Entry(trial.row, ssim(trial.result, reference), seam, _middle(trial.result))


def _seam(source: Source, model: Model, pixels: NDArray[np.uint8], row: Row) -> Seam:
    """Run a float image tiled and whole, so that no rounding hides a difference."""
    longest = max(pixels.shape[:2])
    tile = max(_SEAM_TILE_MIN, min(_SEAM_TILE_MAX, longest // 2))
    if tile >= longest:
        return Seam(tile, refused=f"the image is smaller than a tile of {tile} pixels")
    if model.footprint is not None and model.footprint.global_ops:
        return Seam(tile, refused=f"tiling is refused: {model.footprint.global_ops[0]} sees the whole image")
    image = (pixels / np.float32(255)).astype(np.float32)
    try:
        tiled, whole = (
            load(source, backend=row.backend, precision=row.precision, tile=edge, measure_seconds=0)
            for edge in (tile, 0)
        )
        result, expected = tiled(image), whole(image)
    except (BackendError, CapacityError, DeviceError, ModelError) as error:
        return Seam(tile, refused=str(error))
    windows = tiled.plan(*pixels.shape[:2], dtype="float32").windows
    levels = [np.rint(np.clip(each, 0, 1) * 255) for each in (result, expected)]
    return Seam(tile, windows, max_levels(result, expected), int(np.count_nonzero(levels[0] != levels[1])))


def _eight_bit(picture: Picture) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    notes = list(picture.notes)
    if picture.alpha is not None:
        notes.append("the transparency of the picture is left out")
    array = picture_to_array(picture, like=picture.pixels[..., 0] if picture.is_gray else picture.pixels)
    if picture.alpha is not None:
        array = array[..., :-1] if array.shape[2] == 4 else array[..., 0]
    if array.dtype != np.uint8:
        notes.append(f"{array.dtype} was rounded to 8 bits")
        array = np.rint(np.clip(array / full_scale(array.dtype), 0, 1) * 255)
    return np.ascontiguousarray(array, np.uint8), tuple(notes)


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut the middle out of an image larger than is shown."""
    top, left = (max(0, (size - SHOWN_PX) // 2) for size in image.shape[:2])
    return np.ascontiguousarray(image[top : top + SHOWN_PX, left : left + SHOWN_PX])


def psnr_text(row: Row) -> str:
    """Say how close a result is to fp32."""
    if row.psnr_db is None or math.isinf(row.psnr_db):
        return "equal"
    return f"{row.psnr_db:.1f} dB"
