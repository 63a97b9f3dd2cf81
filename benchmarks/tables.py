"""Write the tables of the README from the records of a machine, each between its markers.

python -m benchmarks.tables [--results FOLDER] [--readme README.md]

Markers: `<!-- numbers:begin -->` ... `<!-- numbers:end -->`, and the same for overhead, fresh and tiling.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.numbers import NOISE, geometric_mean
from benchmarks.records import Row, machine_folder, read_record

MIB = 1 << 20


def main() -> None:
    """Rewrite what there are records and markers for, and name the markers that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=machine_folder())
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    options = parser.parse_args()
    text = options.readme.read_text()
    missing = []
    for suite, write in TABLES.items():
        path = options.results / f"{suite}.json"
        if not path.exists():
            print(f"{path}: not measured; its table stays as it is")
        elif f"<!-- {suite}:begin -->" not in text or f"<!-- {suite}:end -->" not in text:
            missing.append(suite)
        else:
            record = read_record(path)
            text = replaced(text, suite, f"{write(record.rows)}\n\nMeasured {record.date} on {record.machine}.")
    options.readme.write_text(text)
    if missing:
        sys.exit(f"{options.readme} has no markers for: {', '.join(missing)}")


def replaced(text: str, suite: str, table: str) -> str:
    """Put a table between its markers."""
    begin, end = f"<!-- {suite}:begin -->", f"<!-- {suite}:end -->"
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end, 1)[1]}"


def numbers_table(rows: Sequence[Row]) -> str:
    """Lay out the default engine against the best of the other libraries; what is behind is marked."""
    lines = _head(("net", "size", "tilefuse", "runs on", "best other", "speed-up", "in fp32"))
    for row in rows:
        engine = row["times"]["tilefuse"]
        best = f"{row['best_peer']}, {row['times'][row['best_peer']]['median_ms']:.1f} ms"
        lines.append(
            f"| {row['net']} | {row['size']} | {row['median_ms']:.1f} ms | {engine['backend']} {engine['precision']} | "
            f"{best} | {_ratio(row['ratio'])} | {_ratio(row['ratio_fp32'])} of {row['best_fp32_peer']} |"
        )
    means = [geometric_mean([row[key] for row in rows]) for key in ("ratio", "ratio_fp32")]
    lines.append(f"| geometric mean | | | | | **{means[0]:.2f}×** | **{means[1]:.2f}×** |")
    return "\n".join(lines)


def overhead_table(rows: Sequence[Row]) -> str:
    """Lay out file jobs."""
    lines = _head(("job", "time", "not computing", "more than the network alone"))
    lines += [
        f"| {row['case']} | {row['median_ms'] / 1000:.2f} s | {1 - row['beside_ms'] / row['median_ms']:.1%} "
        f"| {row['overhead_share']:.1%} |"
        for row in rows
        if "overhead_share" in row
    ]
    return "\n".join(lines)


def fresh_table(rows: Sequence[Row]) -> str:
    """Lay out cold starts and peak memory."""
    lines = _head(("in a fresh process", "time", "peak growth"))
    for row in rows:
        growth = f"{row['growth_bytes'] / MIB:.0f} MiB" if "growth_bytes" in row else ""
        lines.append(f"| {row['case']} | {row['median_ms'] / 1000:.2f} s | {growth} |")
    return "\n".join(lines)


def tiling_table(rows: Sequence[Row]) -> str:
    """Lay out what tiles cost."""
    lines = _head(("net, size and tile", "windows", "pixels computed", "time", "of the whole image's"))
    for row in rows:
        cost = f"{row['computed']:.2f}× | {row['median_ms']:.1f} ms | {row['of_whole']:.2f}×"
        lines.append(f"| {row['case']} | {row['windows']} | {cost} |")
    return "\n".join(lines)


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}×" + (" (behind)" if ratio < 1 - NOISE else "")


TABLES: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "numbers": numbers_table,
    "overhead": overhead_table,
    "fresh": fresh_table,
    "tiling": tiling_table,
}

if __name__ == "__main__":
    main()
