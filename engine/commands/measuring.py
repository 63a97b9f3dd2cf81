"""The commands that measure: registered by `tilefuse.cli`, which stays a list of commands that run things."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Measure every backend and the default choice on this machine.")
@click.argument("model")
@click.option(
    "--size", "sizes", multiple=True, default=("960x540",), show_default=True, help="WIDTHxHEIGHT, repeatable."
)
@click.option("--backends", default=None, metavar="A,B", help="Backends to measure; all by default.")
@click.option("--precision", default="fp32", show_default=True, metavar="P,Q", help="Some of fp32, bf16, fp16.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1, 1000), help="Interleaved rounds.")
@click.option("--measure-seconds", default=10.0, show_default=True, help="Time to choose a backend in.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the record here.")
@click.option("--overwrite", is_flag=True, help="Replace a record that exists.")
def bench(
    model: str,
    sizes: tuple[str, ...],
    backends: str | None,
    precision: str,
    rounds: int,
    measure_seconds: float,
    json_file: Path | None,
    overwrite: bool,
) -> None:
    """Measure a model on this machine: every backend and the default choice, and what share of the possible."""
    from tilefuse.commands.bench import bench_model, print_bench

    print_bench(bench_model(model, sizes, backends, precision, rounds, measure_seconds, json_file, overwrite))


@click.command(short_help="Show what every backend makes of an image, in one HTML file.")
@click.argument("model")
@click.argument("image")
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="HTML file.")
@click.option("--backends", default=None, metavar="A,B", help="Backends to compare; all by default.")
@click.option("--precision", default="fp32,bf16", show_default=True, metavar="P,Q", help="Some of fp32, bf16, fp16.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 1000), help="Interleaved rounds.")
@click.option("--measure-seconds", default=10.0, show_default=True, help="Time to choose a backend in.")
@click.option("--overwrite", is_flag=True, help="Replace a report that exists.")
def compare(
    model: str,
    image: str,
    output: Path,
    backends: str | None,
    precision: str,
    rounds: int,
    measure_seconds: float,
    overwrite: bool,
) -> None:
    """Show what every backend makes of IMAGE: one HTML file with pictures, differences, speed and memory."""
    from tilefuse.commands.compare import write_report
    from tilefuse.images.outputs import shown

    write_report(
        model,
        image,
        output,
        backends=backends,
        precisions=precision,
        rounds=rounds,
        measure_seconds=measure_seconds,
        overwrite=overwrite,
    )
    click.echo(f"{shown(output)}: open it in a browser")
