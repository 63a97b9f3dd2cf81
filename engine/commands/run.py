"""`tilefuse run`: images through a model, with progress for people and events for machines."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import tilefuse
from tilefuse.api import Engine, Report
from tilefuse.commands.inputs import Pair, finished, pair_files
from tilefuse.commands.progress import Pixels
from tilefuse.compiling import memory_budget
from tilefuse.errors import ImageError, TilefuseError, UsageError
from tilefuse.images import Picture, quiet_decoders, read_image
from tilefuse.images.outputs import shown
from tilefuse.interruptible import THREAD_NAME
from tilefuse.job_files import JobFiles
from tilefuse.machine import parse_bytes
from tilefuse.planner import Plan
from tilefuse.serving import device_of

SOME_FAILED = 7


@dataclass(frozen=True)
class RunOptions:
    """What the command line asked for; `load` goes to `tilefuse.load` as it is."""

    model: str
    load: Mapping[str, str | float | None]
    overwrite: bool
    explain: bool
    as_json: bool
    show_progress: bool
    resume: bool = False
    jobs: int = 1
    value_range: tuple[float, float] | None = None
    per_band: bool = False
    compression: str = "deflate"
    mask: str | None = None
    pyramid: bool = False


def parse_range(text: str | None) -> tuple[float, float] | None:
    """Read LO:HI. Raises UsageError for anything but two finite numbers, the lower one first."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"range: {text!r} is none; give LO:HI, two numbers, the lower one first")
    return low, high


def run_files(inputs: Sequence[str], output: str, options: RunOptions) -> int:
    """Run every input and return the exit status: 0, that of the only error, or 7 when some of several failed."""
    pairs, kept = pair_files(inputs, output, overwrite=options.overwrite, resume=options.resume)
    if not pairs:
        click.echo("tilefuse: every output is there and complete", err=True)
        return 0
    if kept:
        click.echo(f"tilefuse: {kept} of {kept + len(pairs)} outputs are there and complete; they are kept", err=True)
    if len(pairs) == 1 and not os.path.lexists(pairs[0].source):
        raise ImageError(f"{pairs[0].source}: no such file; check the path")
    jobs = min(options.jobs, len(pairs))
    outcomes: dict[Pair, TilefuseError | None] = {}
    try:
        engine = tilefuse.load(options.model, **_shared(options.load, jobs))  # type: ignore[arg-type]
        with progress_bars(Console(stderr=True), disable=not options.show_progress) as bars:
            pixels = Pixels.of(bars, pairs)
            if jobs == 1:
                for pair in pairs:
                    _collect(engine, pair, options, pixels, outcomes, alone=len(pairs) == 1)
            else:
                _run_together(engine, pairs, options, pixels, outcomes, jobs)
    except KeyboardInterrupt as stop:
        raise type(stop)(what_next(pairs, outcomes, overwrite=options.overwrite)) from stop
    errors = [error for error in outcomes.values() if error is not None]
    if errors:
        left = _left(pairs, outcomes)
        click.echo(f"tilefuse: {len(errors)} of {len(pairs)} images failed; {_how(left, options.overwrite)}", err=True)
    if len(errors) == len(pairs) and len({error.exit_code for error in errors}) == 1:
        return errors[0].exit_code
    return SOME_FAILED if errors else 0


def what_next(pairs: Sequence[Pair], outcomes: Mapping[Pair, TilefuseError | None], *, overwrite: bool) -> str:
    """Say what is done of `pairs` that were interrupted, and how to go on."""
    left = _left(pairs, outcomes)
    if len(pairs) > 1:
        return f"{len(pairs) - len(left)} of {len(pairs)} images are done; {_how(left, overwrite)}"
    name = shown(pairs[0].output)
    if JobFiles(pairs[0].output).journal.exists():
        return f"what is done of {name} is kept: the same command with --resume goes on"
    return f"nothing unfinished stands at {name}: the same command begins anew"


def _left(pairs: Sequence[Pair], outcomes: Mapping[Pair, TilefuseError | None]) -> list[Pair]:
    return [pair for pair in pairs if pair not in outcomes or outcomes[pair] is not None]


def _how(left: Sequence[Pair], overwrite: bool) -> str:
    # What stands there without --overwrite is another run's, of the same command.
    if overwrite and any(finished(pair) for pair in left):
        return "--resume would keep outputs of an earlier run too: give the same command again to replace them all"
    return "the same command with --resume goes on and keeps what is done"


def progress_bars(console: Console, *, disable: bool) -> Progress:
    """Make the bars of a run. Their titles are names of files, which are shown as they are."""
    title = TextColumn("{task.description}", markup=False)
    return Progress(title, BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), console=console, disable=disable)


def _shared(load: Mapping[str, str | float | None], jobs: int) -> dict[str, str | float | None]:
    """Share the memory among images that run at once."""
    if jobs == 1:
        return dict(load)
    given = load.get("memory")
    device = device_of(str(load.get("device") or "auto"))
    memory = memory_budget(device) if given is None else parse_bytes(str(given))
    return {**load, "memory": memory // jobs}


def _run_together(
    engine: Engine,
    pairs: Sequence[Pair],
    options: RunOptions,
    pixels: Pixels,
    outcomes: dict[Pair, TilefuseError | None],
    jobs: int,
) -> None:
    pool = ThreadPoolExecutor(jobs, thread_name_prefix=THREAD_NAME)
    try:
        waiting = {pool.submit(_collect, engine, pair, options, pixels, outcomes, alone=False) for pair in pairs}
        while waiting:
            # A short wait, or signals would not be seen until an image is done.
            ended, waiting = wait(waiting, 0.1, FIRST_EXCEPTION)
            for future in ended:
                future.result()
    finally:
        pool.shutdown(wait=not waiting, cancel_futures=True)


def _collect(
    engine: Engine,
    pair: Pair,
    options: RunOptions,
    pixels: Pixels,
    outcomes: dict[Pair, TilefuseError | None],
    *,
    alone: bool,
) -> None:
    """Run one image; of several, one that fails does not stop the others."""
    try:
        _run_one(engine, pair, options, pixels)
        outcomes[pair] = None
    except TilefuseError as error:
        if options.resume and not options.overwrite and finished(pair):
            # Another run into the same folder has done it meanwhile.
            outcomes[pair] = None
            return
        if alone:
            raise
        outcomes[pair] = error
        _event(options, "error", source=str(pair.source), message=str(error), code=error.exit_code)
        click.echo(f"tilefuse: {shown(str(error))}", err=True)
    finally:
        pixels.ended(pair)


def _run_one(engine: Engine, pair: Pair, options: RunOptions, pixels: Pixels) -> None:
    started = time.perf_counter()

    def on_plan(plan: Plan) -> None:
        pixels.planned(pair, plan.height * plan.width)
        _event(options, "plan", source=str(pair.source), **_plan_fields(plan))
        if options.explain and not options.as_json:
            click.echo(str(plan))

    def on_window(done: int, total: int) -> None:
        pixels.advance(pair, done / total)
        _event(options, "progress", source=str(pair.source), done=done, total=total)

    def on_encode(rows: int, total: int) -> None:
        pixels.encoded(pair, rows, total)
        _event(options, "encode", source=str(pair.source), done=rows, total=total)

    report = engine.run_file(
        pair.source,
        pair.output,
        overwrite=options.overwrite,
        progress=on_window,
        on_plan=on_plan,
        read=_read_quietly,
        resume=options.resume and JobFiles(pair.output).journal.exists(),
        per_band=options.per_band,
        value_range=options.value_range,
        compression=options.compression,
        mask=options.mask,
        pyramid=options.pyramid,
        on_encode=on_encode,
    )
    pixels.advance(pair, 1.0)
    _event(options, "done", **_report_fields(report), seconds=round(time.perf_counter() - started, 4))
    if options.as_json:
        return
    for note in (*report.notes, *_repeated(report)):
        click.echo(shown(f"tilefuse: {pair.source.name}: {note}"), err=True)
    if options.show_progress or options.explain:
        pixels.bars.console.print(_summary(report), highlight=False, markup=False, emoji=False, soft_wrap=True)


def _read_quietly(path: str | os.PathLike[str]) -> Picture:
    """Read an image without the decoders' own words: the named error says it all."""
    with quiet_decoders():
        return read_image(path)


def _summary(report: Report) -> str:
    plan = report.plan
    speed = plan.height * plan.width / 1e6 / max(report.seconds, 1e-9)
    kind = " (approximate)" if report.approximate else ""
    return (
        f"{shown(report.output)}: {plan.output_width}x{plan.output_height}{kind} in {report.seconds:.2f} s, "
        f"{speed:.2f} input MP/s"
    )


def _repeated(report: Report) -> tuple[str, ...]:
    """Say how many windows overflowed the precision and were run again."""
    if not report.rerun_fp32:
        return ()
    return (
        f"{report.rerun_fp32} of {report.windows} windows gave values that are not finite in {report.plan.precision} "
        "and were run again in fp32",
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
