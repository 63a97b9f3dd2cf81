"""`tilefuse bench`: what every backend does on this machine, and what the engine chooses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from tilefuse.bench import DEFAULT, Bench, Row, bench
from tilefuse.errors import UsageError
from tilefuse.images.outputs import check_writable, replacing, shown
from tilefuse.machine import format_bytes
from tilefuse.timing import Timing

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


def print_bench(measured: Bench, out: Console | None = None) -> None:
    """Print two tables a size, the fastest first, then the ceilings and what the columns mean."""
    out = out or Console(highlight=False, emoji=False)
    if not out.is_terminal:
        # A file or a pipe has no width to fold the columns into.
        out = Console(file=out.file, highlight=False, emoji=False, width=_FILE_COLUMNS)
    out.print(
        f"{escape(shown(measured.model))} on {measured.machine}; median of up to {measured.rounds} interleaved rounds"
    )
    for size in dict.fromkeys(row.size for row in measured.rows):
        rows = [row for row in measured.rows if row.size == size]
        for columns in (_SPEED, _SHARES):
            out.print(_table(size, rows, columns))
        for row in rows:
            if row.refused is not None:
                out.print(f"[yellow]{escape(row.name)}[/] can't serve: {escape(row.refused)}")
            elif row.name == DEFAULT or row.windows != 1:
                windows = f", {row.windows} windows" if row.windows != 1 else ""
                out.print(f"{row.name} runs {row.backend} {row.precision}{windows}")
    for ceiling in measured.ceilings:
        out.print(
            f"ceiling {ceiling.precision}: matrix product {ceiling.matmul_gflops:.0f} GFLOP/s, "
            f"memory copy {ceiling.copy_gbs:.1f} GB/s"
        )
    out.print(_LEGEND)


_Cell = Callable[[Row, Timing], str]
# A title's line break and two tables keep each within a terminal of 80 columns.
_SPEED: Mapping[str, _Cell] = {
    "median\nms": lambda _, timing: f"{1000 * timing.median_s:.1f}",
    "p20\nms": lambda _, timing: f"{1000 * timing.p20_s:.1f}",
    "p80\nms": lambda _, timing: f"{1000 * timing.p80_s:.1f}",
    "img/s": lambda row, _: _number(row.images_per_s, ".2f"),
    "MP/s\nin": lambda row, _: _number(row.input_mps, ".2f"),
    "MP/s\nout": lambda row, _: _number(row.output_mps, ".2f"),
    "compile\ns": lambda row, _: _number(row.compile_s, ".2f"),
}
_SHARES: Mapping[str, _Cell] = {
    "GFLOP/s": lambda row, _: _number(row.gflops, ".1f"),
    "of\npeak": lambda row, _: _number(row.matmul_share, ".0%"),
    "GB/s": lambda row, _: _number(row.gbs, ".1f"),
    "of\ncopy": lambda row, _: _number(row.copy_share, ".0%"),
    "peak\nmemory": lambda row, _: "-" if row.peak_bytes is None else format_bytes(row.peak_bytes),
    "PSNR\nto fp32": lambda row, _: "equal" if row.psnr_db is None else f"{row.psnr_db:.1f} dB",
    "largest\nerror": lambda row, _: f"{row.max_levels or 0:.0f}",
}
_LEGEND = (
    "ms: a call from 8-bit image to 8-bit image; p20 and p80: its percentiles\n"
    "MP/s: millions of pixels a second; compile: what the first call took longer\n"
    "of peak, of copy: shares of the ceilings; largest error: levels of 255 off fp32\n"
    "GB/s: what the layers would move if each wrote its result to memory"
)


def _table(size: str, rows: Sequence[Row], columns: Mapping[str, _Cell]) -> Table:
    titles = [Column(title, justify="right", no_wrap=True) for title in columns]
    table = Table(Column(size, no_wrap=True), *titles, box=None, pad_edge=False)
    for row in rows:
        if row.timing is not None:
            table.add_row(row.name, *(cell(row, row.timing) for cell in columns.values()))
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def listed(text: str) -> list[str]:
    """Read names with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]
