"""`tilefuse export`: a model written as ONNX, and how far the file is from torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import isinf
from pathlib import Path

import click

from tilefuse.export.onnx import ExportReport, Sizes, to_onnx
from tilefuse.images.outputs import shown


def export_model(
    model: str,
    output: Path,
    *,
    opset: int | None,
    precision: str,
    keep_fp32_io: bool,
    calibration: Path | None,
    overwrite: bool,
) -> None:
    """Export, and print what was written and how it compares.

    Raises:
        ExportError: the model can't be exported, or the file does not match it.
        ModelError: the model can't be loaded.
        UsageError: an option has no such value, or the file can't be written.
    """
    report = to_onnx(
        model,
        output,
        opset=opset,
        precision=precision,
        keep_fp32_io=keep_fp32_io,
        calibration=calibration,
        overwrite=overwrite,
    )
    for line in _lines(report):
        click.echo(line)


def _lines(report: ExportReport) -> list[str]:
    kept = f", {report.kept_fp32} nodes kept in fp32" if report.kept_fp32 else ""
    lines = [
        f"{shown(report.path)}: {report.precision}, opset {report.opset}, {report.file_bytes} bytes{kept}",
        f"{_values(report.inputs)} -> {_values(report.outputs)}",
    ]
    for check in report.checks:
        shapes = ", ".join("x".join(map(str, shape)) for shape in check.shapes)
        psnr = "equal" if isinf(check.psnr_db) else f"{check.psnr_db:.1f} dB"
        lines.append(f"{check.evaluator} on {shapes}: off by {check.max_abs:.1e} at most, {psnr}")
    return [*lines, *report.notes]


def _values(values: Mapping[str, Sizes]) -> str:
    return ", ".join(f"{name} [{', '.join(map(str, sizes))}]" for name, sizes in values.items())
