"""Shows a training run on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tilefuse.export.recipes.training import TrainingStep


@contextmanager
def training_progress(console: Console | None = None) -> Iterator[Callable[[TrainingStep], None]]:
    """Yields an `on_step` for `train` that draws a bar with the loss and the validation gain, on standard error.

    Nothing is drawn where the console is no terminal.
    """
    console = console or Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("validation {task.fields[gain]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("train", total=None, loss=0.0, gain="-")

        def on_step(step: TrainingStep) -> None:
            progress.update(task, total=step.steps, completed=step.step, loss=step.loss)
            if step.validation_db is not None:
                progress.update(task, gain=f"{step.validation_db:+.2f} dB")

        yield on_step
