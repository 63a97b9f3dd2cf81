"""`tilefuse compare`: one HTML file that shows what every backend makes of a picture."""

from __future__ import annotations

from pathlib import Path

from tilefuse.commands.bench import listed
from tilefuse.compare import Comparison, compare
from tilefuse.errors import UsageError
from tilefuse.images.outputs import check_writable, replacing, shown
from tilefuse.report import render


def write_report(
    model: str,
    image: str,
    output: Path,
    *,
    backends: str | None,
    precisions: str,
    rounds: int,
    measure_seconds: float,
    overwrite: bool,
) -> Comparison:
    """Compare and write the report.

    Raises:
        UsageError: the output is no HTML file, stands already or can't be written; no such backend or precision.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{shown(output)}: a report is an HTML file; give a name that ends in .html")
    check_writable(output, overwrite=overwrite)
    compared = compare(
        model,
        image,
        backends=None if backends is None else listed(backends),
        precisions=listed(precisions),
        rounds=rounds,
        measure_seconds=measure_seconds,
    )
    page = render(compared)
    with replacing(output, overwrite=overwrite) as stream:
        stream.write(page.encode())
    return compared
