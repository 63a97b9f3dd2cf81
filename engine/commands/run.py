"""`tilefuse run`: images through a model, with progress for people and events for machines."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import tilefuse
from tilefuse.api import Engine, Report
from tilefuse.commands.inputs import Pair, pair_files
from tilefuse.errors import ImageError, TilefuseError
from tilefuse.images import Picture, quiet_decoders, read_image
from tilefuse.planner import Plan

SOME_FAILED = 7


@dataclass(frozen=True)
class RunOptions:
    """What the command line asked for; `load` goes to `tilefuse.load` as it is."""

    model: str
    load: Mapping[str, str | None]
    overwrite: bool
    explain: bool
    as_json: bool
    show_progress: bool


def run_files(inputs: Sequence[str], output: str, options: RunOptions) -> int:
    """Run every input and return the exit status: 0, that of the only error, or 7 when some of several failed."""
    pairs = pair_files(inputs, output, overwrite=options.overwrite)
    if len(pairs) == 1 and not os.path.lexists(pairs[0].source):
        raise ImageError(f"{pairs[0].source}: no such file; check the path")
    engine = tilefuse.load(options.model, **options.load)  # type: ignore[arg-type]
    console = Console(stderr=True)
    errors: list[TilefuseError] = []
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), console=console
    )
    context: AbstractContextManager[object] = bars if options.show_progress else nullcontext()
    with context:
        for pair in pairs:
            try:
                _run_one(engine, pair, options, bars, console)
            except TilefuseError as error:
                if len(pairs) == 1:
                    raise
                errors.append(error)
                _event(options, "error", source=str(pair.source), message=str(error), code=error.exit_code)
                click.echo(f"tilefuse: {error}", err=True)
    if errors:
        click.echo(f"tilefuse: {len(errors)} of {len(pairs)} images failed", err=True)
    if len(errors) == len(pairs) and len({error.exit_code for error in errors}) == 1:
        return errors[0].exit_code
    return SOME_FAILED if errors else 0


def _run_one(engine: Engine, pair: Pair, options: RunOptions, bars: Progress, console: Console) -> None:
    task = bars.add_task(pair.source.name, total=None)
    started = time.perf_counter()

    def on_plan(plan: Plan) -> None:
        _event(options, "plan", source=str(pair.source), **_plan_fields(plan))
        if options.explain and not options.as_json:
            click.echo(str(plan))

    def on_window(done: int, total: int) -> None:
        bars.update(task, completed=done, total=total)
        _event(options, "progress", source=str(pair.source), done=done, total=total)

    report = engine.run_file(
        pair.source, pair.output, overwrite=options.overwrite, progress=on_window, on_plan=on_plan, read=_read_quietly
    )
    bars.remove_task(task)
    _event(options, "done", **_report_fields(report), seconds=round(time.perf_counter() - started, 4))
    if options.as_json:
        return
    for note in report.notes:
        click.echo(f"tilefuse: {pair.source.name}: {note}", err=True)
    if options.show_progress or options.explain:
        console.print(_summary(report), highlight=False, soft_wrap=True)


def _read_quietly(path: str | os.PathLike[str]) -> Picture:
    """Read an image without the decoders' own words: the named error says it all."""
    with quiet_decoders():
        return read_image(path)


def _summary(report: Report) -> str:
    plan = report.plan
    speed = plan.height * plan.width / 1e6 / max(report.seconds, 1e-9)
    kind = " (approximate)" if report.approximate else ""
    return (
        f"{report.output}: {plan.output_width}x{plan.output_height}{kind} in {report.seconds:.2f} s, "
        f"{speed:.2f} input MP/s"
    )


def _event(options: RunOptions, event: str, **fields: Any) -> None:
    if options.as_json:
        click.echo(json.dumps({"event": event, **fields}))


def _plan_fields(plan: Plan) -> dict[str, Any]:
    return {
        "backend": plan.backend,
        "device": plan.device,
        "precision": plan.precision,
        "size": [plan.width, plan.height],
        "output_size": [plan.output_width, plan.output_height],
        "tile": plan.tile,
        "halo_px": plan.halo_px,
        "window": [plan.window[1], plan.window[0]],
        "windows": plan.windows,
        "exact": plan.exact,
        "flops": plan.flops,
        "peak_bytes": plan.peak_bytes,
        "memory_bytes": plan.memory_bytes,
        "why": list(plan.why),
    }


def _report_fields(report: Report) -> dict[str, Any]:
    return {
        "source": str(report.input),
        "output": str(report.output),
        "windows": report.windows,
        "rerun_fp32": report.rerun_fp32,
        "compute_seconds": round(report.compute_seconds, 4),
        "approximate": report.approximate,
        "notes": list(report.notes),
    }
