"""Say what got slower between two records of one suite.

python -m benchmarks.compare A.json B.json [--tolerance 0.05]

Exit status: 0 when nothing is slower by more than the tolerance, 1 when something is, or a case of A is gone.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.records import Record, read_record


@dataclass(frozen=True)
class Change:
    """One case in both records; `ratio` is B's time over A's."""

    case: str
    before_ms: float
    after_ms: float

    @property
    def ratio(self) -> float:
        """B's time over A's: above 1 is slower."""
        return self.after_ms / self.before_ms


def main() -> None:
    """Print the changes, the worst first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument("--tolerance", type=float, default=0.05, help="share that counts as noise")
    options = parser.parse_args()
    before, after = read_record(options.before), read_record(options.after)
    if before.suite != after.suite:
        raise SystemExit(f"{options.before} is of the suite {before.suite}, {options.after} of {after.suite}")
    if before.machine != after.machine:
        print(f"different machines: {before.machine} | {after.machine}")
    found = changes(before, after)
    slower = [change for change in found if change.ratio > 1 + options.tolerance]
    gone = sorted(_times(before).keys() - _times(after).keys())
    for change in found:
        verdict = "slower" if change in slower else ("faster" if change.ratio < 1 - options.tolerance else "same")
        print(
            f"{change.case:48} {change.before_ms:10.2f} ms -> {change.after_ms:10.2f} ms  {change.ratio:.2f}x {verdict}"
        )
    for case in gone:
        print(f"{case:48} is not in {options.after}")
    print(f"{len(slower)} of {len(found)} slower by more than {options.tolerance:.0%}; {len(gone)} gone")
    sys.exit(1 if slower or gone else 0)


def changes(before: Record, after: Record) -> list[Change]:
    """Match the cases of two records, the one that lost most first."""
    old, new = _times(before), _times(after)
    found = [Change(case, old[case], new[case]) for case in old if case in new]
    return sorted(found, key=lambda change: -change.ratio)


def _times(record: Record) -> dict[str, float]:
    return {row["case"]: row["median_ms"] for row in record.rows if row.get("median_ms")}


if __name__ == "__main__":
    main()
