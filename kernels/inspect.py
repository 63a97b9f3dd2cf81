"""The ahead-of-time gate: `python -m tilefuse.kernels.inspect --target sm_90 [--json]`. Needs no GPU and no driver."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import click

from tilefuse.errors import BackendError

if TYPE_CHECKING:
    from tilefuse.kernels.aot import Row

TARGETS = ("sm_80", "sm_90", "sm_100")
COLUMNS = ("registers", "spill_bytes", "shared_bytes", "wgmma", "async_copies", "byte_stores")


def inspect(target: str, *, matching: str = "", jobs: int = 1) -> Iterator[Row]:
    """Compile every registered kernel for a target and yield what became of it.

    Args:
        target: "sm_80", "sm_90" or "sm_100".
        matching: a regular expression; only kernels whose name it finds are compiled.
        jobs: processes that compile at once.

    Raises:
        BackendError: Triton is missing or interprets, or nothing matches.
    """
    from tilefuse.kernels.registry import launches

    capability = int(target.removeprefix("sm_"))
    chosen = [i for i, launch in enumerate(launches(capability)) if re.search(matching, launch.name)]
    if not chosen:
        raise BackendError(f"no registered kernel matches {matching!r}")
    if jobs == 1:
        yield from map(partial(_inspect_one, capability=capability), chosen)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(partial(_inspect_one, capability=capability), chosen)


def _inspect_one(index: int, capability: int) -> Row:
    """Compile the launch of a number; one that does not compile is a row whose fault says so."""
    from tilefuse.kernels.aot import Row, inspect_launch
    from tilefuse.kernels.registry import launches

    launch = launches(capability)[index]
    try:
        return inspect_launch(launch, capability)
    except BackendError as error:
        return Row(launch.name, str(launch.config), 0, 0, 0, 0, 0, 0, (str(error),))


@click.command()
@click.option("--target", type=click.Choice(TARGETS), required=True, help="GPU generation to compile for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list instead of a table.")
@click.option("--matching", default="", help="Compile only kernels whose name this regular expression finds.")
@click.option(
    "--jobs", default=os.cpu_count, type=click.IntRange(1), help="Processes that compile at once; all by default."
)
def main(target: str, as_json: bool, matching: str, jobs: int) -> None:
    """Compile every kernel of the zoo ahead of time; exit with 1 if any of them is unsound."""
    # Triton reads it at its import, which `inspect` is the first to need.
    os.environ.pop("TRITON_INTERPRET", None)
    rows = list["Row"]()
    if not as_json:
        click.echo("  ".join(COLUMNS) + "  kernel")
    for row in inspect(target, matching=matching, jobs=jobs):
        rows.append(row)
        if not as_json:
            click.echo("  ".join(f"{getattr(row, name):>{len(name)}}" for name in COLUMNS) + f"  {row.kernel}")
            for fault in row.faults:
                click.echo(f"  FAULT: {fault}", err=True)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    unsound = sum(bool(row.faults) for row in rows)
    click.echo(f"{target}: {len(rows)} kernels, {unsound} unsound", err=True)
    sys.exit(1 if unsound else 0)


if __name__ == "__main__":
    main()
