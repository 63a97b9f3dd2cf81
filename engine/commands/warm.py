"""`tilefuse warm`: measure who serves a model best on this machine, and record it for later runs."""

from __future__ import annotations

import json
import time

import click


@click.command(short_help="Measure who serves images of a size best, and record it.")
@click.argument("model")
@click.option("--size", "sizes", multiple=True, metavar="WxH", help="Image size, once or several times. [960x540]")
@click.option("--type", "dtype", type=click.Choice(["uint8", "uint16", "float32"]), default="uint8", show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Time for each size.")
@click.option("--backend", default="auto", show_default=True, help="Measure this backend only (see doctor).")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@click.option("--memory", default=None, metavar="SIZE", help="Memory budget, for instance 768MiB or 2GiB.")
@click.option("--cache-dir", default=None, metavar="DIR", help="Where the choice is recorded; the user's cache.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a size.")
def warm(
    model: str,
    sizes: tuple[str, ...],
    dtype: str,
    seconds: float,
    backend: str,
    device: str,
    precision: str,
    memory: str | None,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Measure every backend on this machine for images of a size, and record which one serves them from now on."""
    import tilefuse
    from tilefuse.commands.bench import parse_size

    parsed = [parse_size(size) for size in sizes or ("960x540",)]
    engine = tilefuse.load(
        model,
        backend=backend,
        device=device,
        precision=precision,
        memory=memory,
        cache_dir=cache_dir,
        measure_seconds=seconds,
    )
    if engine.model.footprint is None:
        serving = engine.warm_latents()
        drawn = {"model": model, "backend": serving.backend, "precision": serving.precision, "why": serving.why}
        click.echo(json.dumps(drawn) if as_json else "\n".join(serving.why))
        return
    for width, height in parsed:
        begin = time.perf_counter()
        plan = engine.warm(height, width, dtype=dtype)
        took = time.perf_counter() - begin
        if as_json:
            fields = {
                "model": model,
                "size": [width, height],
                "backend": plan.backend,
                "precision": plan.precision,
                "tile": plan.tile,
                "workers": plan.workers,
                "seconds": plan.seconds,
                "measured_s": took,
                "why": list(plan.why),
            }
            click.echo(json.dumps(fields))
        else:
            click.echo(f"{plan}\nmeasured  {took:.1f} s")
