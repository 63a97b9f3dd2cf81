"""Measure every bundled super-resolution model and write the table in the README.

python -m benchmarks.models [--json FILE] [--readme README.md]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

import tilefuse
from tilefuse.export.checkpoints import bundled
from tilefuse.machine import cpu_name, cpu_threads

BEGIN, END = "<!-- models:begin -->", "<!-- models:end -->"
HEIGHT, WIDTH, ROUNDS = 540, 960, 7


@dataclass(frozen=True)
class Row:
    """One model. `ms` is the median of whole calls on a uint8 image, `first_s` the first call, with compiling."""

    name: str
    scale: int
    parameters: int
    halo_px: int
    gain_db: float
    backend: str
    first_s: float
    ms: float
    input_mp_s: float
    output_mp_s: float


def main() -> None:
    """Measure, save the JSON and rewrite the README's table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    options = parser.parse_args()
    names = [name for name, path in bundled().items() if "gain_db" in _metadata(path)]
    # A choice that was recorded on this machine may be another precision.
    engines = {name: tilefuse.load(name, precision="fp32") for name in names}
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    first = {name: _seconds(engine, image) for name, engine in engines.items()}
    # Interleaved, so that a slow moment of the machine falls on every model.
    rounds = [{name: _seconds(engine, image) for name, engine in engines.items()} for _ in range(ROUNDS)]
    rows = [
        _row(name, engine, first[name], statistics.median(seconds[name] for seconds in rounds))
        for name, engine in engines.items()
    ]
    machine = f"{cpu_name()}, {cpu_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    record = {
        "machine": machine,
        "date": datetime.now(UTC).date().isoformat(),
        "image": [WIDTH, HEIGHT],
        "rounds": ROUNDS,
        "rows": [asdict(row) for row in rows],
    }
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    text = table(rows, machine)
    readme = options.readme.read_text()
    before, rest = readme.split(BEGIN)
    options.readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    print(text)


def table(rows: list[Row], machine: str) -> str:
    """Lay the rows out as Markdown."""
    lines = [
        "| model | scale | parameters | halo | PSNR over bicubic | backend | time | speed in | speed out |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| `{r.name}` | ×{r.scale} | {r.parameters:,} | {r.halo_px} px | {r.gain_db:+.2f} dB | {r.backend} | "
            f"{r.ms:.0f} ms | {r.input_mp_s:.2f} MP/s | {r.output_mp_s:.1f} MP/s |"
        )
    note = (
        f"Whole calls on a {WIDTH}x{HEIGHT} 8-bit RGB image, fp32, median of {ROUNDS} interleaved rounds on {machine}."
    )
    return "\n".join([*lines, "", f"{note} Gains are in luma on five held-out photographs."])


def _row(name: str, engine: tilefuse.Engine, first_s: float, seconds: float) -> Row:
    metadata = _metadata(bundled()[name])
    graph = engine.model.graph
    return Row(
        name=name,
        scale=int(engine.scale),
        parameters=sum(t.numel() for t in graph.weights.values()) if graph is not None else 0,
        halo_px=engine.footprint.halo,
        gain_db=float(metadata["gain_db"]),
        backend=engine.serving.backend,
        first_s=round(first_s, 3),
        ms=round(seconds * 1000, 1),
        input_mp_s=round(HEIGHT * WIDTH / 1e6 / seconds, 3),
        output_mp_s=round(HEIGHT * WIDTH * int(engine.scale) ** 2 / 1e6 / seconds, 2),
    )


def _seconds(engine: tilefuse.Engine, image: np.ndarray) -> float:  # type: ignore[type-arg]
    begin = time.perf_counter()
    engine(image)
    return time.perf_counter() - begin


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


if __name__ == "__main__":
    main()
