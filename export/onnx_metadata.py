"""What the exported file says of itself: where it comes from, its geometry, and how its pixels are meant."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from torch import nn

from tilefuse.errors import ExportError
from tilefuse.export.checkpoints import bundled
from tilefuse.export.onnx_inputs import Signature
from tilefuse.importers.onnx_files import onnx_module
from tilefuse.importers.onnx_metadata import PIXEL_RANGE, PIXEL_RANGES, PREFIX, VALUE_RANGE
from tilefuse.jobs import MASKED_CHANNELS
from tilefuse.model import Model

if TYPE_CHECKING:
    import onnx

_PIXEL_FORMATS = {1: "Gray8", 3: "Rgb8"}
_AXES = ("DATA_BATCH", "DATA_CHANNEL", "DATA_FEATURE", "DATA_FEATURE")


def metadata_of(
    source: str | os.PathLike[str] | nn.Module, model: Model, signature: Signature, channels: int, precision: str
) -> dict[str, str]:
    """Collect the metadata of an export that gives images of so many channels, 0 when it gives none.

    The keys of the ONNX standard are `model_license` and `Image.*`; ours begin with `tilefuse.`. Pixels are in the
    order of the checkpoint's training, which for every bundled model is RGB.
    """
    sha256, licence = _origin(source, model)
    low, high = model.value_range
    ours = {
        "model": model.name,
        "architecture": model.details.get("architecture", ""),
        "source_sha256": sha256,
        "precision": precision,
        "layout": "NCHW",
    }
    found = {f"{PREFIX}{key}": value for key, value in ours.items() if value}
    if licence:
        found["model_license"] = licence
    if model.image_channels == MASKED_CHANNELS:
        found[f"{PREFIX}channels"] = "red,green,blue,mask"
    if channels:
        found[VALUE_RANGE] = f"{low:g},{high:g}"
        found["Image.ColorSpaceGamma"] = "SRGB"
        if channels in _PIXEL_FORMATS:
            found["Image.BitmapPixelFormat"] = _PIXEL_FORMATS[channels]
        if (low, high) in PIXEL_RANGES:
            found[PIXEL_RANGE] = PIXEL_RANGES[low, high]
    if model.footprint is not None:
        geometry = model.footprint
        found |= {
            f"{PREFIX}scale": str(geometry.y.scale) if geometry.y.scale == geometry.x.scale else "",
            f"{PREFIX}halo_px": str(geometry.halo),
            f"{PREFIX}alignment_px": str(signature.alignment),
            f"{PREFIX}minimum_px": str(signature.minimum_px),
            f"{PREFIX}global_ops": json.dumps(geometry.global_ops),
        }
    return found


def describe(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Write metadata, and mark the images among inputs and outputs as such (ONNX's denotations)."""
    onnx_module().helper.set_model_props(model, dict(metadata))
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name.startswith("image") and len(dims) == 4:
            value.type.denotation = "IMAGE"
            for dim, axis in zip(dims, _AXES, strict=True):
                dim.denotation = axis


def _origin(source: str | os.PathLike[str] | nn.Module, model: Model) -> tuple[str, str]:
    """Return the SHA-256 of the source (a module's is over its state dict), and the licence a checkpoint names."""
    if isinstance(source, nn.Module):
        return model.sha256, ""
    path = bundled().get(str(source), Path(source))
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ExportError(f"{path}: can't be read ({error.strerror or error})") from error
    try:
        with safe_open(os.fspath(path), "numpy") as checkpoint:
            header = checkpoint.metadata() or {}
    except SafetensorError:
        return sha256, ""
    return sha256, header.get("licence") or header.get("license") or ""
