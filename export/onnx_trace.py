"""Module → ONNX through torch.export and torch.onnx, with batch, height and width left open."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from tilefuse.capture import inference_mode_of, without_stack_traces
from tilefuse.errors import ExportError
from tilefuse.export.onnx_inputs import USUAL_PX, Signature

if TYPE_CHECKING:
    import onnx

# What an uncaptured module may need its edges to be multiples of.
ALIGNMENTS = (1, 2, 4, 8, 16)
_LOGGERS = ("torch.onnx", "torch.fx.experimental", "torch._subclasses", "torch.export", "onnxscript")


def trace(module: nn.Module, signature: Signature, output: str, *, opset: int) -> onnx.ModelProto:
    """Export a module in eval mode; sizes are named batch, height and width, multiples as in `2*height`.

    Raises:
        ExportError: the forward branches on data or size, runs at one size only, or uses an op ONNX has not; the
            message names it and says what to do.
    """
    with inference_mode_of(module), torch.no_grad(), _silence(), without_stack_traces():
        model = _convert(_program(module, signature), signature, output, opset)
    _name_sizes(model, signature)
    return model


def aligned(module: nn.Module, signature: Signature) -> Signature:
    """Find what the edges must be multiples of, for a module of which no graph says it, by trying the usual numbers.

    Raises:
        ExportError: as `trace`.
    """
    with inference_mode_of(module), torch.no_grad(), _silence(), without_stack_traces():
        for alignment in ALIGNMENTS:
            candidate = replace(signature, alignment=alignment)
            with suppress(ExportError):
                _program(module, candidate)
                return candidate
        # The error at any size is the one that says most.
        _program(module, signature)
    return signature


def _program(module: nn.Module, signature: Signature) -> ExportedProgram:
    try:
        return torch.export.export(module, signature.traced(), dynamic_shapes=_open_sizes(signature), strict=False)
    except Exception as error:  # torch.export raises errors of many unrelated types
        raise _refusal(error) from error


def _open_sizes(signature: Signature) -> tuple[dict[int, Any], ...]:
    # torch takes a size of 1 anywhere inside for another case; from the usual edge on there is none.
    smallest = signature.edge(USUAL_PX) // signature.alignment
    height, width = (Dim(name, min=smallest) for name in ("height", "width"))
    batch, multiple = Dim("batch", min=1), signature.alignment
    edges = {2: multiple * height, 3: multiple * width} if multiple > 1 else {2: height, 3: width}
    return tuple({0: batch, **(edges if slot.is_image else {})} for slot in signature.slots)


def _refusal(error: Exception) -> ExportError:
    text = str(error)
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    first = lines[0][:300] if lines else type(error).__name__
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return ExportError(
            f"the forward branches on data ({first}): an ONNX file holds one path. Write the branch as torch.where, or "
            "move it out of the forward"
        )
    if "Constraints violated" in text:
        reason = next((line for line in lines if "guard" in line or "specialized" in line or "constant" in line), first)
        return ExportError(
            f"the forward runs at certain sizes only ({reason[:300]}): an export is open in batch, height and width. "
            "Take sizes from the input's shape instead of numbers, and don't branch on them"
        )
    return ExportError(
        f"torch.export can't trace the module ({first}); make the forward plain tensor operations without Python side "
        "effects, or export a part of it"
    )


def _convert(program: ExportedProgram, signature: Signature, output: str, opset: int) -> onnx.ModelProto:
    try:
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=opset,
            input_names=list(signature.names),
            output_names=[output],
            optimize=True,
            verbose=False,
        )
    except Exception as error:  # the exporter wraps whatever its conversion functions raise
        raise _unconverted(error) from error
    if exported is None:
        raise ExportError("torch.onnx.export gave no program; install a newer torch and onnxscript")
    model: onnx.ModelProto = exported.model_proto
    return model


def _unconverted(error: BaseException) -> ExportError:
    """Name the op that ONNX has not, out of a chain of the exporter's errors."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__
    for text in map(str, chain):
        if found := re.search(r"No (?:ONNX function|decompositions?).{0,40}?found for <?\w+\(?\w*=?'?([\w:.]+)", text):
            return ExportError(
                f"ONNX has no form of the op {found[1]}; replace it in the module, or run the module on torch_eager"
            )
    lines = [line.strip() for line in str(chain[-1]).splitlines() if line.strip()]
    return ExportError(
        f"torch.onnx can't write the module ({lines[0][:300] if lines else type(error).__name__}); replace the op, or "
        "try another opset"
    )


def _name_sizes(model: onnx.ModelProto, signature: Signature) -> None:
    """Call the traced symbols batch, height and width, and check that they are three.

    Raises:
        ExportError: a size that should be open is fixed, or two have become one.
    """
    names: dict[str, str] = {}
    for slot, value in zip(signature.slots, model.graph.input, strict=True):
        dims = value.type.tensor_type.shape.dim
        for axis, name in enumerate(("batch", "", "height", "width")[: 4 if slot.is_image else 1]):
            if not name:
                continue
            symbols = re.findall(r"[A-Za-z_]\w*", dims[axis].dim_param)
            if len(symbols) != 1 or names.setdefault(symbols[0], name) != name:
                found = dims[axis].dim_param or dims[axis].dim_value
                raise ExportError(
                    f"{name} of the input {slot.name!r} became {found} while tracing; the network ties it to a number "
                    "or to another size. Take sizes from the input's shape instead"
                )
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), dim.dim_param)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep torch from printing what its errors say too."""
    levels = {log: log.level for log in map(logging.getLogger, _LOGGERS)}
    with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        for log in levels:
            log.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for log, level in levels.items():
                log.setLevel(level)
