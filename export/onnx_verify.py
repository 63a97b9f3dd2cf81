"""The proof of an export: the written bytes against torch, run by ONNX Runtime and by ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import inf, isfinite, log10
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tilefuse.errors import ExportError
from tilefuse.importers.onnx_files import onnx_module
from tilefuse.machine import cpu_threads

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], Array]


@dataclass(frozen=True)
class Bar:
    """What a file must reach: at most `max_abs` off, as a share of max(1, largest value), or at least `psnr_db`."""

    max_abs: float = inf
    psnr_db: float = -inf


# The bars of each precision; int8 is measured on pictures, the others on noise.
BARS = {"fp32": Bar(max_abs=1e-4), "fp16": Bar(psnr_db=45.0), "int8": Bar(psnr_db=38.0)}


@dataclass(frozen=True)
class Check:
    """One comparison with torch: who ran the file, on inputs of which shapes, how far off (`max_abs` as in `Bar`)."""

    evaluator: str
    shapes: tuple[tuple[int, ...], ...]
    max_abs: float
    psnr_db: float


def check_structure(data: bytes) -> onnx.ModelProto:
    """Parse a serialised model and hold it against the standard: the checker, and shape inference in strict mode.

    Raises:
        ExportError: either refuses it.
    """
    module = onnx_module()
    model: onnx.ModelProto = module.load_model_from_string(data)
    try:
        module.checker.check_model(model, full_check=True)
        module.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # the checker's and the inference's errors share no base
        raise ExportError(f"the written file is not valid ONNX: {_first_line(error)}; try another opset") from error
    return model


def verify(
    data: bytes,
    torch_model: Callable[..., Tensor],
    samples: Sequence[tuple[Tensor, ...]],
    value_range: tuple[float, float] | None,
    bar: Bar,
) -> tuple[Check, ...]:
    """Compare a serialised model with torch: ONNX Runtime on every sample, the reference evaluator on the first.

    `value_range` is the peak for the PSNR; without it, for results that are no images, the result's own range is.

    Raises:
        ExportError: a result has another shape, is not finite, or misses the bar.
    """
    model = check_structure(data)
    dtypes = {value.name: _dtype(value) for value in model.graph.input}
    runs = (("ONNX Runtime", _onnxruntime(data), samples), ("the reference evaluator", _reference(model), samples[:1]))
    checks = []
    for name, run, inputs in runs:
        for sample in inputs:
            feed = {key: x.numpy().astype(dtypes[key]) for key, x in zip(dtypes, sample, strict=True)}
            with torch.no_grad():
                expected = torch_model(*sample).float().numpy()
            checks.append(_compare(name, feed, run(feed).astype(np.float32), expected, value_range, bar))
    return tuple(checks)


def _compare(
    name: str, feed: Mapping[str, Array], actual: Array, expected: Array, span: tuple[float, float] | None, bar: Bar
) -> Check:
    shapes = tuple(array.shape for array in feed.values())
    place = f"for an input of {', '.join('x'.join(map(str, shape)) for shape in shapes)}"
    if actual.shape != expected.shape:
        raise ExportError(
            f"{name} gives a result of {list(actual.shape)} {place}, torch one of {list(expected.shape)}; no file was "
            "written. The forward may depend on the size in a way tracing can't see"
        )
    if not np.isfinite(actual).all():
        raise ExportError(f"{name} gives values that are not finite {place}; no file was written. Use fp32")
    difference = np.abs(actual.astype(np.float64) - expected)
    max_abs = float(difference.max()) / max(1.0, float(np.abs(expected).max()))
    peak = span[1] - span[0] if span else float(expected.max() - expected.min()) or 1.0
    error = float(np.square(difference).mean())
    psnr_db = 10 * log10(peak**2 / error) if error else inf
    if max_abs > bar.max_abs or psnr_db < bar.psnr_db:
        wanted = f"{bar.max_abs:g} at most" if isfinite(bar.max_abs) else f"{bar.psnr_db:g} dB at least"
        raise ExportError(
            f"{name} and torch differ by {max_abs:.2e} ({psnr_db:.1f} dB) {place}; {wanted} was asked. "
            "No file was written"
        )
    return Check(name, shapes, max_abs, psnr_db)


def _onnxruntime(data: bytes) -> Run:
    session = ort_session(data)

    def run(feed: Mapping[str, Array]) -> Array:
        try:
            result: Array = session.run(None, dict(feed))[0]
        except Exception as error:  # a class a status code, with no common base
            raise ExportError(f"ONNX Runtime can't run the written file: {_first_line(error)}") from error
        return result

    return run


def ort_session(data: bytes, *, optimise: bool = True) -> Any:
    """Open a serialised model with ONNX Runtime on the CPU.

    Raises:
        ExportError: it is not installed, or refuses the model.
    """
    try:
        ort = import_module("onnxruntime")
    except ImportError as error:
        raise ExportError("verifying an export needs onnxruntime: pip install tilefuse[cpu]") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = cpu_threads(), 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise ExportError(
            f"ONNX Runtime can't open the written file: {_first_line(error)}; try another opset"
        ) from error


def _reference(model: onnx.ModelProto) -> Run:
    evaluator = import_module("onnx.reference").ReferenceEvaluator(model)

    def run(feed: Mapping[str, Array]) -> Array:
        try:
            with np.errstate(all="ignore"):
                result: Array = np.asarray(evaluator.run(None, dict(feed))[0])
        except Exception as error:  # each op fails in its own way
            raise ExportError(f"ONNX's reference evaluator can't run the written file: {_first_line(error)}") from error
        return result

    return run


def _dtype(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    dtype: np.dtype[Any] = onnx_module().helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return dtype


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
