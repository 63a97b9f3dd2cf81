"""What a file job costs beside the network: decoding, planning, tiling, conversion and encoding of 12 megapixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tilefuse
from benchmarks.conftest import Keep
from benchmarks.records import Row
from tilefuse.images import read_image, write_image
from tilefuse.sample import sample_picture
from tilefuse.timing import timed

HEIGHT, WIDTH = 3000, 4000
FORMATS = ("jpg", "png", "tif")
NETS = ("espcn-x2", "compact-x4")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write the photograph in each format."""
    folder = tmp_path_factory.mktemp("photographs")
    image = Image.fromarray(sample_picture(HEIGHT, WIDTH))
    found = {suffix: folder / f"in.{suffix}" for suffix in FORMATS}
    for path in found.values():
        image.save(path)
    return found


@pytest.mark.parametrize("suffix", FORMATS)
def bench_codec(benchmark: Any, keep: Keep, photographs: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    """Report decoding and encoding alone."""
    picture = read_image(photographs[suffix])
    decoding = min(timed(lambda: read_image(photographs[suffix])) for _ in range(3))
    target = tmp_path / f"out.{suffix}"
    benchmark.pedantic(lambda: write_image(target, picture, overwrite=True), rounds=3, iterations=1)
    row: Row = {
        "case": f"{suffix}: encode 12 megapixels",
        "median_ms": 1000 * benchmark.stats.stats.median,
        "decode_ms": 1000 * decoding,
    }
    benchmark.extra_info.update(row)
    keep(row)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("net", NETS)
def bench_job(benchmark: Any, keep: Keep, photographs: dict[str, Path], tmp_path: Path, net: str, suffix: str) -> None:
    """Report a whole job from file to file; its overhead is everything but the backend's own computing.

    That is timed between the jobs, with the decoded picture and no encoder beside it: the seconds that a job counts
    inside the backend grow with what is encoded meanwhile. `beside_ms` are those.
    """
    engine = tilefuse.load(net)
    engine.warm(HEIGHT, WIDTH)
    engine.run_file(photographs[suffix], tmp_path / f"first.{suffix}")
    picture = read_image(photographs[suffix])
    alone, reports = list[float](), list[tilefuse.Report]()

    def compute() -> None:
        alone.append(engine.run_picture(picture)[2].compute_seconds)

    def run() -> None:
        reports.append(engine.run_file(photographs[suffix], tmp_path / f"out.{suffix}", overwrite=True))

    benchmark.pedantic(run, setup=compute, rounds=3, iterations=1)
    computing, whole = float(np.median(alone)), float(np.median([report.seconds for report in reports]))
    row: Row = {
        "case": f"{net}: {suffix} of 12 megapixels to {suffix}",
        "median_ms": 1000 * whole,
        "compute_ms": 1000 * computing,
        "beside_ms": 1000 * float(np.median([report.compute_seconds for report in reports])),
        "overhead_share": 1 - computing / whole,
        "backend": reports[0].plan.backend,
    }
    benchmark.extra_info.update(row)
    keep(row)
