"""`tilefuse train --evaluate`: what trained models are worth on held-out data, as tables or JSON."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from tilefuse.export.checkpoints import bundled
from tilefuse.export.recipes.measuring import Measurement, measure

ALL = "all"
UNITS = {"psnr_db": "PSNR dB", "ssim": "SSIM", "bits_per_pixel": "bits a pixel", "frechet": "Fréchet distance"}


def evaluate_models(source: str, *, as_json: bool) -> None:
    """Measure a bundled model, a checkpoint, or `all` that are bundled; a table each, or a line of JSON each.

    Raises:
        ModelError: there is no such model, or nothing held out tells its worth.
    """
    for name in bundled() if source == ALL else (source,):
        measured = measure(name)
        if as_json:
            click.echo(json.dumps(_fields(measured)))
        else:
            Console(markup=False, emoji=False).print(_table(measured))


def _fields(measured: Measurement) -> dict[str, object]:
    rows = [{"subject": row.subject, "method": row.method, **row.values} for row in measured.rows]
    return {"model": measured.model, "task": measured.task, "rows": rows}


def _table(measured: Measurement) -> Table:
    names = list(dict.fromkeys(name for row in measured.rows for name in row.values))
    table = Table("on", "method", title=f"{measured.model}: {measured.task}")
    for name in names:
        table.add_column(UNITS.get(name, name.replace("_", " ")), justify="right")
    for row in measured.rows:
        table.add_row(row.subject, row.method, *(_cell(row.values.get(name)) for name in names))
    return table


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
