"""Write the README's GPU table from the records of real runs: python -m benchmarks.gpu_table [--readme README.md]."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.gpu_record import check_record, table

RESULTS = Path(__file__).with_name("results")
BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"
NONE = "No result has been measured on a GPU yet; `python -m benchmarks.gpu --json FILE` measures one."


def main() -> None:
    """Rewrite what stands between the markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    text = options.readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{options.readme}: the table goes between one {BEGIN} and one {END}; write both")
    before, rest = text.split(BEGIN)
    options.readme.write_text(f"{before}{BEGIN}\n{newest(options.results)}\n{END}{rest.split(END)[1]}")


def newest(results: Path) -> str:
    """Give the tables of the newest record of every GPU, or the sentence that there is none.

    Raises:
        SystemExit: a file is no record, or one of a dry run.
    """
    tables = []
    for folder in sorted(results.glob("*/")):
        records = []
        for path in folder.glob("*.json"):
            found = json.loads(path.read_text())
            if not isinstance(found, dict) or "gpu" not in found:
                continue
            try:
                check_record(found)
            except ValueError as error:
                raise SystemExit(f"{path}: is no record of a GPU check: {error}") from error
            if found["dry_run"]:
                raise SystemExit(f"{path}: is the record of a dry run, whose figures say nothing; remove it")
            records.append(found)
        if records:
            tables.append(table(max(records, key=lambda record: record["date"])))
    return "\n\n".join(tables) or NONE


if __name__ == "__main__":
    main()
