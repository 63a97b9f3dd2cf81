"""`tilefuse bench`: what every backend does on this machine, and what the engine chooses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from tilefuse.bench import Bench, Row, bench
from tilefuse.errors import UsageError
from tilefuse.images.outputs import check_writable, replacing, shown
from tilefuse.machine import format_bytes

_MAX_EDGE = 32768
_FILE_COLUMNS = 180


def bench_model(
    model: str,
    sizes: Sequence[str],
    backends: str | None,
    precisions: str,
    rounds: int,
    measure_seconds: float,
    json_file: Path | None,
    overwrite: bool,
) -> Bench:
    """Measure a model and write the JSON when it is asked for.

    Raises:
        UsageError: a size, backend or precision is none, or the JSON can't be written.
    """
    if json_file is not None:
        check_writable(json_file, overwrite=overwrite)
    measured = bench(
        model,
        sizes=[parse_size(size) for size in sizes],
        backends=None if backends is None else listed(backends),
        precisions=listed(precisions),
        rounds=rounds,
        measure_seconds=measure_seconds,
    )
    if json_file is not None:
        with replacing(json_file, overwrite=overwrite) as stream:
            stream.write(json.dumps(measured.as_json(), indent=2).encode() + b"\n")
    return measured


def parse_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT. Raises UsageError for anything but two numbers of pixels."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= min(size) <= max(size) <= _MAX_EDGE:
        raise UsageError(f"size: {text!r} is none; give WIDTHxHEIGHT in pixels, for instance 1920x1080")
    return size


def print_bench(measured: Bench) -> None:
    """Print one table a size, the fastest first, then the ceilings."""
    out = Console(highlight=False, emoji=False)
    if not out.is_terminal:
        # A file or a pipe has no width to fold the columns into.
        out = Console(highlight=False, emoji=False, width=_FILE_COLUMNS)
    out.print(
        f"{escape(shown(measured.model))} on {measured.machine}; median of up to {measured.rounds} interleaved rounds"
    )
    for size in dict.fromkeys(row.size for row in measured.rows):
        rows = [row for row in measured.rows if row.size == size]
        out.print(_table(size, [row for row in rows if row.timing]))
        for row in rows:
            if row.refused is not None:
                out.print(f"[yellow]{escape(row.name)}[/] can't serve: {escape(row.refused)}")
    for ceiling in measured.ceilings:
        out.print(
            f"ceiling {ceiling.precision}: matrix product {ceiling.matmul_gflops:.0f} GFLOP/s, "
            f"memory copy {ceiling.copy_gbs:.1f} GB/s"
        )
    out.print("GB/s: what the layers would move if each passed its result on through memory.")


def _table(size: str, rows: Sequence[Row]) -> Table:
    numbers = ("median ms", "p20", "p80", "img/s", "MP/s in", "MP/s out", "GFLOP/s", "of peak", "GB/s", "of copy")
    columns = [Column(name, justify="right") for name in (*numbers, "peak", "compile s", "PSNR to fp32")]
    table = Table(Column(size, no_wrap=True), "runs", *columns, box=None, pad_edge=False)
    for row in rows:
        if row.timing is None:
            continue
        times = [f"{1000 * s:.1f}" for s in (row.timing.median_s, row.timing.p20_s, row.timing.p80_s)]
        table.add_row(
            row.name,
            f"{row.backend} {row.precision}" + (f", {row.windows} windows" if row.windows != 1 else ""),
            *times,
            _number(row.images_per_s, ".2f"),
            _number(row.input_mps, ".2f"),
            _number(row.output_mps, ".1f"),
            _number(row.gflops, ".0f"),
            _number(row.matmul_share, ".0%"),
            _number(row.gbs, ".1f"),
            _number(row.copy_share, ".0%"),
            "-" if row.peak_bytes is None else format_bytes(row.peak_bytes),
            _number(row.compile_s, ".2f"),
            "equal" if row.psnr_db is None else f"{row.psnr_db:.1f} dB, {row.max_levels:.0f} levels",
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def listed(text: str) -> list[str]:
    """Read names with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]
