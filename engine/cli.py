"""The command line: nothing but parsing and printing. Each command's work is in `tilefuse.commands`."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import TextIO

import click

from tilefuse import __version__
from tilefuse.cli_latents import classify, compress, decompress, reconstruct
from tilefuse.commands import measuring
from tilefuse.commands.warm import warm
from tilefuse.errors import TilefuseError, UsageError
from tilefuse.interruptible import Terminated, still_working
from tilefuse.standard_streams import abandon_output, prepare_streams

INTERRUPTED, READER_GONE, TERMINATED, OUT_OF_MEMORY, NOT_WRITTEN = 130, 141, 143, 5, 2
# What click and rich leave with when the reader of standard output went away; nothing of ours does.
_OUTPUT_CLOSED = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tilefuse")
def cli() -> None:
    """Run trained convolutional image generators at any image size: tiled equals untiled."""


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.option("-o", "--output", required=True, help="Output file, or a folder for several inputs.")
@click.option("-m", "--model", required=True, help="Bundled name, or a .safetensors, .pth or .onnx file.")
@click.option("--backend", default="auto", show_default=True, help="Backend to use (see doctor).")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@click.option("--tile", default="auto", show_default=True, help="auto, 0 (whole image) or an edge in input pixels.")
@click.option("--halo", default="exact", show_default=True, help="exact, or input pixels (approximate).")
@click.option("--memory", default=None, metavar="SIZE", help="Memory budget, for instance 768MiB or 2GiB.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@click.option("--resume", is_flag=True, help="Go on where a run was stopped; finished outputs are kept.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Images at once.")
@click.option("--range", "value_range", default=None, metavar="LO:HI", help="Samples that mean black and white.")
@click.option("--per-band", is_flag=True, help="Run each band as a gray image, however many there are.")
@click.option("--compression", default="deflate", show_default=True, help="deflate, zstd or none: streamed TIFF.")
@click.option("--pyramid", is_flag=True, help="Add reduced copies to a TIFF, for viewers of large images.")
@click.option("--mask", default=None, metavar="M.png", help="Gray image, white where the image has holes to fill.")
@click.option("--measure-seconds", default=10.0, show_default=True, help="Time to choose a backend in; 0: never.")
@click.option("--explain", is_flag=True, help="Print the plan of each image and why.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON event a line.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def run(
    inputs: tuple[str, ...],
    output: str,
    model: str,
    backend: str,
    device: str,
    precision: str,
    tile: str,
    halo: str,
    memory: str | None,
    overwrite: bool,
    resume: bool,
    jobs: int,
    value_range: str | None,
    per_band: bool,
    compression: str,
    pyramid: bool,
    mask: str | None,
    measure_seconds: float,
    explain: bool,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Run images through a model. IN is a file, a folder or a glob; several go into the folder OUT."""
    from tilefuse.commands.run import RunOptions, parse_range, run_files

    options = RunOptions(
        model=model,
        load={
            "backend": backend,
            "device": device,
            "precision": precision,
            "tile": tile,
            "halo": halo,
            "memory": memory,
            "measure_seconds": measure_seconds,
        },
        overwrite=overwrite,
        resume=resume,
        jobs=jobs,
        value_range=parse_range(value_range),
        per_band=per_band,
        compression=compression,
        pyramid=pyramid,
        mask=mask,
        explain=explain,
        as_json=as_json,
        show_progress=not no_progress and not as_json and sys.stderr.isatty(),
    )
    sys.exit(run_files(inputs, output, options))


@cli.command()
@click.option("-m", "--model", required=True, help="A bundled generator (see models), or a checkpoint.")
@click.option("-n", "--count", default=16, show_default=True, type=click.IntRange(min=1), help="Images to draw.")
@click.option("--seed", default=0, show_default=True, help="Seed of the latents.")
@click.option("--label", default=None, type=int, help="Class to draw, for conditional models; all in turn by default.")
@click.option("--interpolate", default=None, metavar="A:B", help="A strip from seed A to seed B, in place of a sheet.")
@click.option("-o", "--output", required=True, help="Image file of the contact sheet.")
@click.option("--backend", default="auto", show_default=True, help="Backend to use (see doctor).")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
def generate(
    model: str,
    count: int,
    seed: int,
    label: int | None,
    interpolate: str | None,
    output: str,
    backend: str,
    overwrite: bool,
) -> None:
    """Draw images from random latents onto one sheet."""
    from tilefuse.commands.generate import generate_sheet

    generate_sheet(
        model,
        output,
        count=count,
        seed=seed,
        label=label,
        interpolate=interpolate,
        backend=backend,
        overwrite=overwrite,
    )


@cli.command(short_help="Describe a model: geometry, size, and who can serve it.")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(model: str, as_json: bool) -> None:
    """Describe a model: geometry, size, and which backends can serve it."""
    from tilefuse.commands.describe import describe_model, print_model

    described = describe_model(model)
    if as_json:
        click.echo(json.dumps(described, indent=2))
    else:
        print_model(described)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(as_json: bool) -> None:
    """List the bundled models."""
    from tilefuse.commands.describe import list_models, print_models

    listed = list_models()
    if as_json:
        click.echo(json.dumps(listed, indent=2))
    else:
        print_models(listed)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check this machine: libraries, backends, and what to install."""
    from tilefuse.commands.doctor import examine, print_findings

    findings = examine()
    if as_json:
        click.echo(json.dumps(findings, indent=2))
    else:
        print_findings(findings)
    if not findings["serving"]:
        sys.exit(6)


@cli.command(short_help="Train a bundled model again, or evaluate one.")
@click.argument("recipe", required=False)
@click.option("-o", "--output", default=None, type=click.Path(dir_okay=False, path_type=Path), help="Checkpoint.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Steps; the recipe's own by default.")
@click.option("--seed", default=0, show_default=True, help="Seed of pictures, crops and weights.")
@click.option("--resume", is_flag=True, help="Continue a run that was stopped.")
@click.option("--loss", default=None, help="Of a GAN: minimax, non_saturating, hinge or wasserstein.")
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that exists.")
@click.option("--evaluate", default=None, metavar="MODEL", help="Measure a bundled model, a checkpoint, or all.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line a step, or a model.")
def train(
    recipe: str | None,
    output: Path | None,
    device: str,
    steps: int | None,
    seed: int,
    resume: bool,
    loss: str | None,
    overwrite: bool,
    evaluate: str | None,
    as_json: bool,
) -> None:
    """Train a bundled model's recipe again, or measure with --evaluate what a model is worth on held-out data."""
    if evaluate is not None:
        if recipe is not None or output is not None:
            raise UsageError("--evaluate trains nothing: leave out the recipe and -o")
        from tilefuse.commands.evaluate import evaluate_models

        evaluate_models(evaluate, as_json=as_json)
        return
    if recipe is None or output is None:
        raise UsageError("name a recipe and the checkpoint to write: tilefuse train RECIPE -o model.safetensors")
    from tilefuse.commands.train import train_recipe

    train_recipe(
        recipe,
        output,
        device=device,
        steps=steps,
        seed=seed,
        resume=resume,
        loss=loss,
        overwrite=overwrite,
        as_json=as_json,
    )


@cli.command(short_help="Write a model as ONNX, once it is proved equal to torch.")
@click.argument("model")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .onnx file to write.")
@click.option("--opset", default=None, type=int, help="Version of ONNX's ops, 18 to 23; 20 by default.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, fp16 or int8.")
@click.option("--keep-fp32-io", is_flag=True, help="Let inputs and outputs of an fp16 file be fp32.")
@click.option("--calibration", default=None, type=click.Path(path_type=Path), help="Folder of pictures for int8.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
def export(
    model: str,
    output: Path,
    opset: int | None,
    precision: str,
    keep_fp32_io: bool,
    calibration: Path | None,
    overwrite: bool,
) -> None:
    """Write a model as an ONNX file, once it is proved equal to torch."""
    from tilefuse.commands.export import export_model

    export_model(
        model,
        output,
        opset=opset,
        precision=precision,
        keep_fp32_io=keep_fp32_io,
        calibration=calibration,
        overwrite=overwrite,
    )


@cli.command()
@click.argument("content")
@click.argument("style")
@click.option("-o", "--output", required=True, help="Image file to write.")
@click.option("--steps", default=200, show_default=True, type=click.IntRange(min=1), help="Steps of the optimiser.")
@click.option("--seed", default=0, show_default=True, help="Seed of the noise it starts from.")
@click.option("--style-weight", default=50.0, show_default=True, help="How much the style counts beside the content.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the losses as JSON.")
def stylise(
    content: str,
    style: str,
    output: str,
    steps: int,
    seed: int,
    style_weight: float,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Redraw the picture CONTENT in the style of the picture STYLE."""
    from tilefuse.commands.stylise import stylise_file

    stylise_file(
        content,
        style,
        output,
        steps=steps,
        seed=seed,
        style_weight=style_weight,
        overwrite=overwrite,
        as_json=as_json,
    )


for command in (classify, reconstruct, compress, decompress):
    cli.add_command(command)


cli.add_command(warm)


cli.add_command(measuring.bench)
cli.add_command(measuring.compare)


def main() -> None:
    """Run the command line; a named error becomes one line on standard error and its exit code."""
    prepare_streams()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _run_cli()
    except SystemExit as stop:
        if still_working():
            # A library's call goes on in a thread: leaving in the ordinary way would wait for it, or crash in it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        raise


def _run_cli() -> None:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except TilefuseError as error:
        from tilefuse.images.outputs import shown

        # Names of files, and what libraries say, may hold anything.
        _fail(shown(str(error)), error.exit_code)
    except MemoryError:
        _fail("memory ran out; give --memory a budget, or a smaller --tile", OUT_OF_MEMORY)
    except (KeyboardInterrupt, click.Abort) as stop:
        # Click puts an exception of its own in place of the interruption.
        cause = stop.__cause__ if isinstance(stop, click.Abort) else stop
        word, code = ("terminated", TERMINATED) if isinstance(cause, Terminated) else ("interrupted", INTERRUPTED)
        _fail(f"{word}; {str(cause or '') or 'nothing unfinished stands under the name of an output'}", code)
    except SystemExit as stop:
        sys.exit(READER_GONE if stop.code == _OUTPUT_CLOSED else stop.code)
    except OSError as error:
        from tilefuse.images.outputs import shown

        abandon_output()
        reason = error.strerror or str(error)
        where = f" ({error.filename})" if error.filename else ""
        _fail(shown(f"the system refused to go on: {reason}{where}; check where the output goes"), NOT_WRITTEN)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of ours as one line, and another's as Python does."""
    ours = str(message).startswith("tilefuse: ")
    text = f"{message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    click.echo(text, file or sys.stderr, nl=False)


def _fail(message: str, code: int) -> None:
    click.echo(f"tilefuse: {message}", err=True)
    sys.exit(code)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated
