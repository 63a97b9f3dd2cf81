"""What a GPU check found: its record, what it may claim, and the table of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRITON, EAGER, COMPILED, ORT, CUDNN = (
    *("triton_fused", "eager channels_last half, CUDA graph", "torch.compile max-autotune"),
    *("ONNX Runtime CUDA", "cudnn-frontend"),
)
BASELINES = (EAGER, COMPILED, ORT, CUDNN)
MIN_DB = 50.0
Row = dict[str, Any]
_FIELDS = {
    "gpu": str, "driver": str, "torch": str, "triton": str, "python": str, "commit": str, "date": str,
    "dry_run": bool, "finished": bool,
    "ceilings": dict, "checks": list, "kernels": list, "networks": list, "notes": list,
}  # fmt: skip


def speed_up(row: Row) -> float | None:
    """How many times faster than the fastest baseline a network runs; None where its check is red or none ran."""
    own = row["times"].get(TRITON, {}).get("median_ms")
    others = [row["times"][name]["median_ms"] for name in BASELINES if "median_ms" in row["times"].get(name, {})]
    if not row["check"]["passed"] or own is None or not others:
        return None
    return float(min(others) / own)


def geometric_mean(factors: Sequence[float]) -> float | None:
    """Geometric mean, or None of nothing."""
    return math.exp(sum(map(math.log, factors)) / len(factors)) if factors else None


def judged(record: Mapping[str, Any]) -> dict[str, Any]:
    """Add every network's speed-up and their geometric mean; a red kernel takes back those of its type, all may use it.

    A kernel whose check gave no answer is red.
    """
    red = [(check["kernel"], check["dtype"]) for check in record["checks"] if not check["passed"]]
    spoilt = {dtype for _, dtype in red}
    rows = [{**row, "speed_up": None if row["dtype"] in spoilt else speed_up(row)} for row in record["networks"]]
    factors = [row["speed_up"] for row in rows if row["speed_up"] is not None]
    complete = len(factors) == len(rows) and record["finished"]
    return {
        **record,
        "networks": rows,
        "red_kernels": [f"{kernel} {dtype}" for kernel, dtype in red],
        "geometric_mean": geometric_mean(factors) if complete else None,
    }


def check_record(record: Any) -> None:
    """Raise ValueError, naming the field, unless a record has the form that the table reads."""
    for name, kind in _FIELDS.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise ValueError(f"{name}: a {kind.__name__} is due")
    for place, rows, keys in (
        ("checks", record["checks"], ("kernel", "dtype", "max_error", "rms_error", "tiled_equal", "passed")),
        ("kernels", record["kernels"], ("kernel", "shape", "median_ms", "gb_s", "tflop_s", "share", "bound_by")),
        ("networks", record["networks"], ("network", "shape", "dtype", "check", "times", "peak_bytes", "speed_up")),
    ):
        for row in rows:
            missing = [key for key in keys if key not in row]
            if missing:
                raise ValueError(f"{place}: a row without {', '.join(missing)}")


def write(record: Mapping[str, Any], path: Path) -> None:
    """Write a record; the file is whole or as it was."""
    check_record(dict(record))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, path)


def table(record: Mapping[str, Any]) -> str:
    """Lay the networks out as Markdown."""
    lines = [
        "| network | triton_fused | fastest baseline | speed-up | PSNR to fp32 | memory, of eager's |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["networks"]:
        times, peaks = row["times"], row["peak_bytes"]
        ran = {name: times[name]["median_ms"] for name in BASELINES if "median_ms" in times.get(name, {})}
        best = min(ran, key=lambda name: ran[name]) if ran else None
        factor, own = row["speed_up"], times.get(TRITON, {}).get("median_ms")
        shares = [peaks[name] for name in (TRITON, BASELINES[0]) if peaks.get(name)]
        psnr = "—" if row["check"]["psnr_db"] is None else f"{row['check']['psnr_db']:.1f} dB"
        lines.append(
            f"| {row['network']} | {_ms(own)} | {f'{_ms(ran[best])}, {best}' if best else 'none ran'} | "
            f"{f'{factor:.2f}×' if factor is not None else 'none: a check is red' if best else 'none'} | "
            f"{psnr} | {f'{shares[0] / shares[1]:.2f}×' if len(shares) == 2 else '—'} |"
        )
    mean = record["geometric_mean"]
    shown = f"{mean:.2f}×" if mean is not None else "not given: a check is red or a network has no speed-up"
    where = f"{record['gpu']}, driver {record['driver']}, torch {record['torch']}, Triton {record['triton']}"
    ceilings = record["ceilings"]
    reached = (
        "{copy_gb_s:.0f} GB/s copied, {half_tflop_s:.0f} TFLOP/s multiplied".format(**ceilings) if ceilings else "none"
    )
    note = (
        f"Geometric mean: {shown}. Half precision, medians of CUDA-graph replays with the L2 flushed; {where}, commit "
        f"{record['commit'][:10]}, {record['date']}. Measured ceilings: {reached}."
        f"{'' if record['finished'] else ' The run was cut short.'}"
    )
    return "\n".join([*lines, "", note])


def _ms(value: float | None) -> str:
    return "did not run" if value is None else f"{value:.3g} ms"
