"""`tilefuse train`: a recipe run again, with progress and the scores at the end."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tilefuse.export.recipes import Report, StepRecord, TrainingReport, train, training_progress
from tilefuse.images.outputs import shown


def train_recipe(
    recipe: str,
    output: Path,
    *,
    device: str,
    steps: int | None,
    seed: int,
    resume: bool,
    loss: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train, showing losses and validation; as JSON, a line a step and the scores as the last."""
    run = partial(
        train, recipe, output, device=device, steps=steps, seed=seed, resume=resume, loss=loss, overwrite=overwrite
    )
    if as_json:
        report = run(on_step=_echo)
        click.echo(json.dumps({"output": str(output), **_scores(report)}))
        return
    with training_progress() as on_step:
        report = run(on_step=on_step)
    Console().print(_table(report))
    click.echo(f"{shown(output)}: {report.parameters} parameters, {report.steps} steps in {report.seconds:.0f} s")


def _echo(done: StepRecord) -> None:
    line = {"step": done.step, "steps": done.steps, "losses": dict(done.losses), "validation": dict(done.validation)}
    click.echo(json.dumps(line))


def _scores(report: Report) -> dict[str, Any]:
    if not isinstance(report, TrainingReport):
        return {"quality": dict(report.quality)}
    scores = {image.name: [image.model_db, image.bicubic_db] for image in report.evaluation.images}
    return {"psnr_db": scores, "gain_db": report.evaluation.gain_db, "ssim_gain": report.evaluation.ssim_gain}


def _table(report: Report) -> Table:
    if not isinstance(report, TrainingReport):
        table = Table("measure", "value", title=f"{report.recipe}: against held-out data")
        for name, value in report.quality.items():
            table.add_row(name, f"{value:.4g}")
        return table
    columns = ("photograph", "model dB", "bicubic dB", "gain dB", "SSIM gain")
    table = Table(*columns, title=f"{report.recipe}: Y-PSNR and SSIM, held out")
    for image in report.evaluation.images:
        gain, ssim_gain = image.model_db - image.bicubic_db, image.model_ssim - image.bicubic_ssim
        cells = f"{image.model_db:.2f}", f"{image.bicubic_db:.2f}", f"{gain:+.2f}", f"{ssim_gain:+.4f}"
        table.add_row(image.name, *cells)
    table.add_row("mean", "", "", f"{report.evaluation.gain_db:+.2f}", f"{report.evaluation.ssim_gain:+.4f}")
    return table
