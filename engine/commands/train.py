"""`tilefuse train`: a recipe run again, with progress and the scores at the end."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tilefuse.export.recipes import TrainingReport, TrainingStep, train


def train_recipe(
    recipe: str, output: Path, *, device: str, steps: int | None, seed: int, resume: bool, as_json: bool
) -> None:
    """Train, showing loss and validation gain; as JSON, a line a step and the scores as the last."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=as_json or not console.is_terminal) as bars:
        task = bars.add_task("preparing the pictures", total=None)
        gains = ["-"]

        def on_step(done: TrainingStep) -> None:
            if done.validation_db is not None:
                gains.append(f"{done.validation_db:+.2f} dB")
            if as_json:
                click.echo(json.dumps(asdict(done)))
            bars.update(
                task,
                completed=done.step,
                total=done.steps,
                description=f"{recipe} loss {done.loss:.5f} validation {gains[-1]}",
            )

        report = train(recipe, output, device=device, steps=steps, seed=seed, resume=resume, on_step=on_step)
    if as_json:
        scores = {image.name: [image.model_db, image.bicubic_db] for image in report.evaluation.images}
        click.echo(json.dumps({"output": str(output), "psnr_db": scores, "gain_db": report.evaluation.gain_db}))
    else:
        Console().print(_scores(report))
        click.echo(f"{output}: {report.parameters} parameters, {report.steps} steps in {report.seconds:.0f} s")


def _scores(report: TrainingReport) -> Table:
    table = Table("photograph", "model dB", "bicubic dB", "gain dB", title=f"{report.recipe}: Y-PSNR, held out")
    for image in report.evaluation.images:
        gain = image.model_db - image.bicubic_db
        table.add_row(image.name, f"{image.model_db:.2f}", f"{image.bicubic_db:.2f}", f"{gain:+.2f}")
    table.add_row("mean", "", "", f"{report.evaluation.gain_db:+.2f}")
    return table
