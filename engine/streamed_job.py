"""A streamed job: what was asked for, what it makes, and what is refused before the work."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from tilefuse.compiling import memory_budget
from tilefuse.errors import UsageError
from tilefuse.images import FORMATS
from tilefuse.images.metadata import exif_texts
from tilefuse.images.outputs import shown
from tilefuse.job_files import JobFiles
from tilefuse.planner import Plan
from tilefuse.storage import check_target
from tilefuse.storage.base import RasterInfo
from tilefuse.storage.georeference import scaled
from tilefuse.storage.tiff_encode import BIG_BYTES, COMPRESSIONS
from tilefuse.storage.vips_encode import check_webp_memory
from tilefuse.streamed_windows import Planes

# Pillow refuses to open more than twice its MAX_IMAGE_PIXELS.
_PILLOW_LIMIT_PX = 2 * 89_478_485
# A segment of JPEG, less what libvips adds to the block.
JPEG_EXIF_BYTES = 65_000


@dataclass(frozen=True)
class StreamJob:
    """What to run: files and how to treat them. `value_range` are the samples that the network sees as 0 and 1."""

    source: Path
    output: Path
    overwrite: bool = False
    resume: bool = False
    per_band: bool = False
    value_range: tuple[float, float] | None = None
    compression: str = "deflate"
    pyramid: bool = False


def checked_compression(name: str) -> str:
    """Return `name`, or raise UsageError when a streamed TIFF knows no such compression."""
    if name not in COMPRESSIONS:
        raise UsageError(f"compression: {name!r} is none; give {', '.join(COMPRESSIONS)}")
    return name


def check_names(job: StreamJob, files: JobFiles) -> None:
    """Raise UsageError when the output is a link, lies in the input, stands already, or is unfinished."""
    source, output = job.source, job.output
    if output.is_symlink():
        raise UsageError(f"{shown(output)}: is a symbolic link; name the file itself")
    real_source, real_output = Path(os.path.realpath(source)), Path(os.path.realpath(output))
    if real_source == real_output or real_source in real_output.parents:
        raise UsageError(f"{shown(output)}: lies in the input {shown(source)}; choose another place")
    begun = files.journal.exists()
    check_target(output, overwrite=job.overwrite or (job.resume and begun))
    if begun and not job.resume and not job.overwrite:
        raise UsageError(
            f"{shown(output)}: an unfinished run of it is there; go on with --resume, or start anew with --overwrite"
        )


def interpreted(info: RasterInfo, job: StreamJob) -> RasterInfo:
    """Describe the input as the job wants it seen."""
    if job.per_band:
        info = replace(info, alpha="none")
    return replace(info, value_range=job.value_range) if job.value_range is not None else info


def result_info(info: RasterInfo, planes: Planes, made: Plan, job: StreamJob) -> RasterInfo:
    """Describe the result: straight alpha, metadata scaled; a profile describes its own number of channels."""
    metadata = scaled(info.metadata, made.scale)
    if planes.total_bands != info.bands:
        metadata = replace(metadata, icc=None)
    notes = info.notes
    if job.output.suffix.lower() not in (".tif", ".tiff") and (metadata.geo or metadata.ome):
        notes = (*notes, f"{job.output.suffix} does not keep GeoTIFF or OME metadata; TIFF does")
    kept, note = kept_exif(metadata.exif, job.output.suffix.lower())
    return replace(
        info,
        height=made.output_height,
        width=made.output_width,
        bands=planes.total_bands,
        alpha="none" if info.alpha == "none" else "straight",
        metadata=replace(metadata, exif=kept),
        notes=notes if note is None else (*notes, note),
    )


def kept_exif(exif: bytes | None, suffix: str) -> tuple[bytes | None, str | None]:
    """Return the EXIF that a format can keep, and a note on what it can't."""
    if exif is None:
        return None, None
    kind = FORMATS.get(suffix, suffix)
    if kind == "TIFF" and not exif_texts(exif)[1]:
        return exif, "of the EXIF, TIFF keeps the texts alone (camera, software, time, people)"
    if kind == "JPEG" and len(exif) > JPEG_EXIF_BYTES:
        return None, f"EXIF of {len(exif)} bytes left out: JPEG holds {JPEG_EXIF_BYTES}"
    if kind not in ("TIFF", "JPEG", "PNG", "WebP"):
        return None, f"{suffix} does not keep EXIF; TIFF, PNG, JPEG and WebP do"
    return exif, None


def check_result(job: StreamJob, result: RasterInfo, made: Plan) -> None:
    """Refuse before the work what the format can't hold."""
    suffix = job.output.suffix.lower()
    if job.pyramid and suffix not in (".tif", ".tiff"):
        raise UsageError(f"{shown(job.output)}: only TIFF holds a pyramid; .dzi (Deep Zoom) is one by itself")
    size = (result.width, result.height)
    check_target(job.output, overwrite=True, size=size)
    kind = FORMATS.get(suffix, suffix)
    if kind in ("PNG", "JPEG", "WebP", ".dzi") and result.bands not in (1, 2, 3, 4):
        raise UsageError(f"{shown(job.output)}: {suffix} holds no {result.bands} bands; choose .tif, .npy or .zarr")
    if kind == "WebP":
        # What a GPU's budget leaves is none of this machine's memory.
        check_webp_memory(result, memory_budget("cpu") if made.device.startswith("cuda") else made.memory_bytes)


def disk_bytes(job: StreamJob, result: RasterInfo) -> int:
    """Estimate what the job writes: the raster, and the encoded result unless it is the raster itself."""
    copies = 1 if job.output.suffix.lower() == ".npy" else 2
    # The reduced levels take a third of the raster, in the result and while they are made.
    return result.nbytes * copies + (2 * result.nbytes // 3 if job.pyramid else 0) + (1 << 20)


def result_notes(job: StreamJob, result: RasterInfo) -> tuple[str, ...]:
    """Say what a user should know of the result's size."""
    notes = []
    if job.output.suffix.lower() in (".tif", ".tiff") and result.nbytes > BIG_BYTES:
        notes.append("written as BigTIFF: classic TIFF ends at 4 GiB")
    if job.output.suffix.lower() in FORMATS and result.height * result.width > _PILLOW_LIMIT_PX:
        notes.append(
            f"{result.width * result.height / 1e6:.0f} megapixels: viewers built on Pillow refuse more than "
            f"{_PILLOW_LIMIT_PX / 1e6:.0f} unless told otherwise"
        )
    return tuple(notes)
