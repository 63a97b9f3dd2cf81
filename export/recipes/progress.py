"""Shows a training run on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tilefuse.export.recipes.catalogue import StepRecord


@contextmanager
def training_progress(console: Console | None = None) -> Iterator[Callable[[StepRecord], None]]:
    """Yields an `on_step` for `train` that draws a bar with losses and validation scores, on standard error.

    Nothing is drawn where the console is no terminal.
    """
    console = console or Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[losses]}"),
        TextColumn("validation {task.fields[scores]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("train", total=None, losses="", scores="-")

        def on_step(step: StepRecord) -> None:
            losses = " ".join(f"{name} {value:.4f}" for name, value in step.losses.items())
            progress.update(task, total=step.steps, completed=step.step, losses=losses)
            if step.validation:
                progress.update(task, scores=" ".join(f"{name} {value:.4g}" for name, value in step.validation.items()))

        yield on_step
