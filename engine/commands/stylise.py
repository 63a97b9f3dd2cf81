"""`tilefuse stylise`: one picture redrawn in the style of another, by optimisation."""

from __future__ import annotations

import json
import sys

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tilefuse.export.stylisation import StyleLosses, stylise
from tilefuse.images import Picture, check_output, picture_from_array, quiet_decoders, read_image, write_image
from tilefuse.images.outputs import shown


def stylise_file(
    content: str, style: str, output: str, *, steps: int, seed: int, style_weight: float, overwrite: bool, as_json: bool
) -> None:
    """Redraw and write, then tell the losses.

    Raises:
        ImageError: a picture can't be read.
        UsageError: a picture is too small, or the output can't be written.
    """
    path = check_output(output, overwrite=overwrite)
    with quiet_decoders():
        pictures = [read_image(name) for name in (content, style)]
    arrays = [_eight_bit_colour(picture) for picture in pictures]
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[losses]}"), TimeRemainingColumn())
    silent = as_json or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=silent) as progress:
        task = progress.add_task("stylise", total=steps, losses="")

        def on_step(done: StyleLosses) -> None:
            progress.update(task, completed=done.step, losses=_text(done))

        result = stylise(*arrays, steps=steps, seed=seed, style_weight=style_weight, on_step=on_step)
    write_image(path, picture_from_array(result.picture), overwrite=overwrite)
    if as_json:
        click.echo(json.dumps({"output": output, "before": _fields(result.before), "after": _fields(result.after)}))
        return
    for picture, name in zip(pictures, (content, style), strict=True):
        if picture.alpha is not None:
            click.echo(f"tilefuse: {shown(name)}: transparency is left out", err=True)
    losses = f"{_text(result.after)}; the content itself: style {result.before.style:.4f}"
    click.echo(f"{shown(output)}: {steps} steps; {losses}")


def _eight_bit_colour(picture: Picture) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Turn any picture into uint8 [H, W, 3]."""
    share = np.clip(picture.pixels.astype(np.float64) / picture.full_scale, 0.0, 1.0)
    levels = np.rint(share * 255.0).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels, (*levels.shape[:2], 3)))


def _fields(losses: StyleLosses) -> dict[str, float]:
    return {"style": losses.style, "content": losses.content, "variation": losses.variation}


def _text(losses: StyleLosses) -> str:
    return f"style {losses.style:.4f}, content {losses.content:.4f}, variation {losses.variation:.4f}"
