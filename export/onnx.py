"""Export to ONNX: traced by torch, compared with torch, and only then given its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch
from torch import Tensor, nn

from tilefuse.backends.precision import exact_fp32
from tilefuse.capture import from_onnx
from tilefuse.errors import ExportError, ModelError, UsageError
from tilefuse.export import onnx_verify
from tilefuse.export.onnx_emit import emit
from tilefuse.export.onnx_graph import fold_batch_norm, tidy
from tilefuse.export.onnx_inputs import Signature, signature_of
from tilefuse.export.onnx_metadata import describe, metadata_of
from tilefuse.export.onnx_precision import overflowing, to_fp16
from tilefuse.export.onnx_quantise import calibration_samples, quantise
from tilefuse.export.onnx_trace import aligned, trace
from tilefuse.export.onnx_verify import BARS, Check
from tilefuse.images import replacing
from tilefuse.importers.onnx_files import MAX_BYTES
from tilefuse.model import Model
from tilefuse.source import load_model

if TYPE_CHECKING:
    import onnx

DEFAULT_OPSET, OPSETS = 20, range(18, 24)
PRECISIONS = ("fp32", "fp16", "int8")

Sizes = tuple[int | str, ...]


@dataclass(frozen=True)
class ExportReport:
    """What was written: `inputs` and `outputs` by name, with sizes as numbers or as `batch`, `height`, `2*height`.

    `checks` are the comparisons with torch, none of them when they were not asked for; `kept_fp32` counts the nodes
    that fp16 would make overflow; `notes` say where the file was made in another way than usual.
    """

    path: Path
    file_bytes: int
    opset: int
    precision: str
    inputs: Mapping[str, Sizes]
    outputs: Mapping[str, Sizes]
    metadata: Mapping[str, str]
    checks: tuple[Check, ...]
    kept_fp32: int = 0
    notes: tuple[str, ...] = ()

    @property
    def max_abs(self) -> float:
        """Largest difference from torch, as a share of max(1, largest value); 0 without checks."""
        return max((check.max_abs for check in self.checks), default=0.0)

    @property
    def psnr_db(self) -> float:
        """Least PSNR against torch; infinite without checks."""
        return min((check.psnr_db for check in self.checks), default=inf)


@dataclass(frozen=True, eq=False)
class _Network:
    """A model and what its export needs of it: inputs, the forward in torch, and the form of its one result."""

    model: Model
    signature: Signature
    run: Callable[..., Tensor]
    result: Tensor

    @property
    def gives_image(self) -> bool:
        """Tell whether the result is an image."""
        return self.result.ndim == 4

    @property
    def output(self) -> str:
        """Name the result; in ONNX an input and an output can't share one."""
        if not self.gives_image:
            return "output"
        return "image_out" if "image" in self.signature.names else "image"


def to_onnx(
    source: str | os.PathLike[str] | nn.Module,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    precision: str = "fp32",
    verify: bool = True,
    keep_fp32_io: bool = False,
    calibration: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a model as one ONNX file, open in batch, height and width, once it is proved equal to torch.

    Inputs are called `image` (0..1), `mask`, `latent` and `label` (one-hot); the result `image`, `image_out` beside an
    input of that name, or `output` when it is none. The proof: ONNX's checker and shape inference, ONNX Runtime at
    three sizes that were not traced, and ONNX's reference evaluator, each against torch.

    Args:
        source: a bundled name, a checkpoint, an ONNX file, or a module.
        path: the file to write, in .onnx.
        opset: version of the standard's ops, 18 to 23; 20 when None.
        precision: fp32; fp16, with fp32 kept where fp16 would overflow; or int8, in QDQ form.
        verify: False leaves out the comparisons.
        keep_fp32_io: let inputs and outputs of an fp16 file be fp32.
        calibration: folder of pictures for int8.
        overwrite: replace a file that stands at `path`.

    Raises:
        ExportError: the model can't be exported, or the file misses 1e-4 of max(1, largest value) in fp32, 45 dB in
            fp16, 38 dB in int8. No file is written then.
        ModelError: the source can't be loaded.
        UsageError: an option has no such value, or the file can't be written.
    """
    target = Path(path)
    number = _check_options(target, opset, precision, keep_fp32_io, calibration)
    with replacing(target, overwrite=overwrite) as stream:
        network = _network(source)
        samples, kept = list(network.signature.others()), 0
        if precision == "int8":
            calibrating, samples = calibration_samples(network.signature, calibration)
        model, notes = _fp32(network, number)
        if precision == "int8":
            model = quantise(model, calibrating)
        elif precision == "fp16":
            model, kept = to_fp16(model, overflowing(model, samples), keep_fp32_io=keep_fp32_io)
        channels = _image_channels(network)
        metadata = metadata_of(source, network.model, network.signature, channels, precision)
        describe(model, metadata)
        data = _written(model, stream)
        # A bare module does not say what black and white are to it.
        span = None if isinstance(source, nn.Module) or not network.gives_image else network.model.value_range
        with exact_fp32():
            checks = onnx_verify.verify(data, network.run, samples, span, BARS[precision]) if verify else ()
    inputs, outputs = (
        {value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim) for value in values}
        for values in (model.graph.input, model.graph.output)
    )
    return ExportReport(target, len(data), number, precision, inputs, outputs, metadata, checks, kept, notes)


def _check_options(
    path: Path, opset: int | None, precision: str, keep_fp32_io: bool, calibration: str | os.PathLike[str] | None
) -> int:
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path}: an export is an ONNX file; give it the extension .onnx")
    if precision not in PRECISIONS:
        raise UsageError(f"precision: {precision!r} is none; give {', '.join(PRECISIONS)}")
    if keep_fp32_io and precision != "fp16":
        raise UsageError(f"keep_fp32_io is for fp16; an {precision} file has fp32 inputs and outputs anyway")
    if calibration is not None and precision != "int8":
        raise UsageError(f"calibration is for int8, not {precision}; leave it out")
    if opset is not None and opset not in OPSETS:
        raise UsageError(f"opset: {opset} is not supported; give {OPSETS[0]} to {OPSETS[-1]}")
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise ExportError(f"export needs the package {package}: pip install tilefuse[cpu]")
    return opset or DEFAULT_OPSET


def _network(source: str | os.PathLike[str] | nn.Module) -> _Network:
    model = load_model(source)
    signature = signature_of(model)
    graph = model.graph
    if model.module is not None:
        run: Callable[..., Tensor] = model.module
        if graph is None:
            signature = aligned(model.module, signature)
    elif graph is not None:

        def run(*inputs: Tensor) -> Tensor:
            return graph.evaluate(*inputs)[0]

    else:
        raise ExportError(f"{model.name} is an ONNX file already, with ops tilefuse can't rewrite: {model.uncaptured}")
    with torch.no_grad():
        result = run(*signature.traced())
    if not isinstance(result, Tensor):
        raise ExportError(f"{model.name} gives a {type(result).__name__}; export a module that returns the image alone")
    fixed = [slot for slot in signature.slots if slot.name == "image" and not slot.is_image]
    if fixed and result.ndim == 4:
        size = "x".join(map(str, fixed[0].sizes))
        raise ExportError(
            f"{model.name} runs on images of {size} only, and an export is open in height and width; take sizes from "
            "the input's shape instead of numbers, and leave out weights that vary over the image"
        )
    return _Network(model, signature, run, result)


def _image_channels(network: _Network) -> int:
    """Channels of the images going in, or, where none does, coming out; 0 where there is none."""
    slots = [slot for slot in network.signature.slots if slot.name == "image"]
    if slots:
        return slots[0].sizes[0] or 0
    return network.result.shape[1] if network.gives_image else 0


def _fp32(network: _Network, opset: int) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Trace the module; write from the graph where there is no module, or where a traced file could not be tiled."""
    model = network.model
    notes: tuple[str, ...] = ()
    if model.module is None:
        notes = ("written from the graph: the source is an ONNX file",)
        made = emit(model, network.signature, network.output, opset=opset)
    else:
        made = trace(model.module, network.signature, network.output, opset=opset)
        tidy(made, model.name)
        fold_batch_norm(made)
        reason = _uncapturable(made) if model.graph is not None else None
        if reason is not None:
            notes = (f"written from the graph: torch's own export could not be tiled ({reason})",)
            made = emit(model, network.signature, network.output, opset=opset)
    return made, notes


def _uncapturable(model: onnx.ModelProto) -> str | None:
    try:
        from_onnx(model)
    except ModelError as error:
        return str(error)
    return None


def _written(model: onnx.ModelProto, stream: BinaryIO) -> bytes:
    """Write the model, and read back what stands in the file."""
    if model.ByteSize() > MAX_BYTES:
        raise ExportError(f"the model takes {model.ByteSize()} bytes; one ONNX file holds {MAX_BYTES}. Use fp16")
    stream.write(model.SerializeToString())
    stream.seek(0)
    return stream.read()
