"""fp32 → int8: static quantisation in QDQ form, with ranges calibrated on pictures of the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.errors import ExportError, UsageError
from tilefuse.export.onnx_inputs import Signature, Slot
from tilefuse.images import FORMATS, read_image
from tilefuse.importers.onnx_files import onnx_module

if TYPE_CHECKING:
    import onnx

SUFFIXES = (*FORMATS, ".bmp", ".ppm", ".pgm")
MAX_PICTURES = 64
CROP_PX = 96
# Every fourth crop is kept from calibration, to measure the result on.
HELD_OUT = 4
LATENTS = 64
# Layers with weights; what lies between them is cheap, and adds rounding.
QUANTISED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Samples = list[tuple[Tensor, ...]]


def calibration_samples(signature: Signature, folder: str | os.PathLike[str] | None) -> tuple[Samples, Samples]:
    """Draw inputs to calibrate with, and others to measure on.

    The corners of the folder's pictures are cut out, up to 96 pixels an edge, or of the one size the network takes. A
    network of latents draws random ones, and takes no folder.

    Raises:
        UsageError: the folder is missing or without pictures large enough, or given where none is taken.
        ImageError: a picture can't be read.
    """
    place = next((i for i, slot in enumerate(signature.slots) if slot.name == "image"), None)
    if place is None:
        if folder is not None:
            raise UsageError("the network takes latents, which calibrate by themselves; leave --calibration out")
        return (
            [signature.sample(1, 1, 1, seed=seed) for seed in range(LATENTS)],
            [signature.sample(16, 1, 1, seed=seed) for seed in range(LATENTS, LATENTS + 3)],
        )
    if folder is None:
        raise UsageError("precision int8 needs --calibration FOLDER with pictures like those to be run")
    crops = [crop for path in _pictures(Path(folder)) for crop in _crops(path, signature, signature.slots[place])]
    if len(crops) < 2:
        raise UsageError(
            f"{folder}: {len(crops)} of its pictures is large enough for the network; give two at least, to calibrate "
            "with and to measure on"
        )
    samples = []
    for seed, crop in enumerate(crops):
        drawn = signature.sample(1, crop.shape[2], crop.shape[3], seed=seed)
        # What a picture has no channel for, a mask, stays as drawn.
        image = torch.cat([crop, drawn[place][:, crop.shape[1] :].round()], 1)
        samples.append((*drawn[:place], image, *drawn[place + 1 :]))
    held = samples[::HELD_OUT]
    return [sample for i, sample in enumerate(samples) if i % HELD_OUT], sorted(held, key=lambda s: s[0].numel())


def quantise(model: onnx.ModelProto, samples: Sequence[tuple[Tensor, ...]]) -> onnx.ModelProto:
    """Quantise weights a channel and activations a tensor, both to signed 8 bits, by ONNX Runtime's quantiser.

    Raises:
        ExportError: ONNX Runtime is missing, or can't quantise the network.
    """
    try:
        quantization = import_module("onnxruntime.quantization")
    except ImportError as error:
        raise ExportError("int8 needs onnxruntime and its quantiser: pip install tilefuse[cpu]") from error
    names = [value.name for value in model.graph.input]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        """Hands out the samples one by one."""

        def __init__(self) -> None:
            self._feeds = iter([{n: x.numpy() for n, x in zip(names, s, strict=True)} for s in samples])

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            """Return the next feed, None at the end."""
            return next(self._feeds, None)

    prepared = onnx_module().ModelProto()
    prepared.CopyFrom(model)
    # The quantiser's own mark for a model with folded constants and sizes known, which this one is; else it warns.
    onnx_module().helper.set_model_props(prepared, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with TemporaryDirectory(prefix="tilefuse-") as folder:
        target = Path(folder) / "int8.onnx"
        try:
            quantization.quantize_static(
                prepared,
                target,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        except Exception as error:  # the quantiser raises whatever its parts do
            lines = str(error).splitlines() or [type(error).__name__]
            raise ExportError(f"ONNX Runtime can't quantise the network: {lines[0][:300]}") from error
        made: onnx.ModelProto = onnx_module().load_model(target)
    return made


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no folder; --calibration takes one with pictures ({', '.join(SUFFIXES)})")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"{folder}: no pictures in it ({', '.join(SUFFIXES)}); add some like those to be run")
    return found[:MAX_PICTURES]


def _crops(path: Path, signature: Signature, slot: Slot) -> Iterator[Tensor]:
    """Cut the corners of a picture, as float [1, C, h, w] in 0..1; none of one that is too small."""
    picture = read_image(path)
    pixels = picture.pixels.astype(np.float32) / picture.full_scale
    channels, *fixed = (size or 0 for size in slot.sizes)
    channels = 1 if channels == 1 else 3
    if pixels.shape[2] != channels:
        pixels = pixels.mean(2, keepdims=True, dtype=np.float32).repeat(channels, 2)
    if slot.is_image:
        a = signature.alignment
        fixed = [min(edge, signature.edge(CROP_PX)) // a * a for edge in pixels.shape[:2]]
        if min(fixed) < signature.edge(1):
            return
    height, width = fixed
    if pixels.shape[0] < height or pixels.shape[1] < width:
        return
    for y in sorted({0, pixels.shape[0] - height}):
        for x in sorted({0, pixels.shape[1] - width}):
            crop = pixels[y : y + height, x : x + width].transpose(2, 0, 1)[None]
            yield torch.from_numpy(np.ascontiguousarray(crop))
