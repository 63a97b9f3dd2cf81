"""The GPU check, in one command: python -m benchmarks.gpu --json FILE [--only TEXT ...] [--budget S] [--dry-run]

It measures the device's two ceilings, checks every layer of the zoo against fp32 and tile against whole, and times
layers and networks beside every baseline that is installed. Baselines whose turn comes after the budget are left out
and named. A second run with --only adds its networks to the file. Needs torch, Triton, NumPy and this repository.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks import gpu_runners as runners
from benchmarks.gpu_chains import chain_subjects, ring_absent, ring_subjects
from benchmarks.gpu_clock import Ceilings, Clock, CudaClock, HostClock, measure_ceilings
from benchmarks.gpu_kernels import Subject, check, layers
from benchmarks.gpu_nets import NETS, TINY, Net
from benchmarks.gpu_plain import plain_subjects
from benchmarks.gpu_record import COMPILED, CUDNN, EAGER, MIN_DB, ORT, TRITON, check_record, judged, table, write
from tilefuse.backends.triton.session import TritonSession
from tilefuse.capture import from_module
from tilefuse.errors import TilefuseError
from tilefuse.footprint import footprint
from tilefuse.graph import Graph
from tilefuse.tiling import grid

BUDGET_S = 420.0
# torch.compile's search takes about so long; none begins with less left.
COMPILE_RESERVE_S = 75.0


@dataclass(frozen=True)
class Scale:
    """How much is measured: everything, or for a dry run the same steps on next to nothing."""

    nets: tuple[Net, ...]
    networks: tuple[str, ...]
    chains: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    check_size: tuple[int, int]
    kernel_size: tuple[int, int] | None
    copy_bytes: int
    edge: int
    seconds: float


FULL = Scale(NETS, (), (), (torch.float16, torch.float32), (65, 87), None, 2 * 2**30, 8192, 0.25)
DRY = Scale(TINY, ("fsrcnn",), ("pggan",), (torch.float16,), (20, 24), (5, 6), 2**16, 32, 0.0)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write and print; the exit status is 1 where a check is red."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write; an older one is added to with --only")
    parser.add_argument("--only", nargs="*", default=None, metavar="TEXT", help="networks whose name has one of these")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="S", help="seconds for all of it")
    parser.add_argument("--dry-run", action="store_true", help="try every step on the CPU; its figures say nothing")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device; --dry-run tries the steps on a CPU")
    if options.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--dry-run runs the kernels in Triton's interpreter: set TRITON_INTERPRET=1")
    scale = DRY if options.dry_run else FULL
    nets = [n for n in scale.nets if options.only is None or any(text in n.name for text in options.only)]
    if not nets:
        parser.error(f"no network is called so; there are {', '.join(net.name for net in scale.nets)}")
    earlier = _earlier(options.json) if options.only is not None else None
    record = judged(measure(scale, nets, time.monotonic() + options.budget, options.dry_run, earlier))
    write(record, options.json)
    print(table(record))
    for kernel in record["red_kernels"]:
        print(f"RED: {kernel}")
    red = record["red_kernels"] or [row for row in record["networks"] if not row["check"]["passed"]]
    return 1 if red else 0


def measure(
    scale: Scale, nets: list[Net], deadline: float, dry_run: bool, earlier: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run every step and collect the record, the rows of an earlier one included."""
    clock: Clock = HostClock() if dry_run else CudaClock()
    if not dry_run:
        _warm(nets, kernels=earlier is None)
    ceilings = measure_ceilings(clock, copy_bytes=scale.copy_bytes, edge=scale.edge, seconds=scale.seconds)
    print(f"ceilings: {ceilings.copy_gb_s:.0f} GB/s, {ceilings.half_tflop_s:.0f} TFLOP/s", flush=True)
    if earlier is None:
        checks = [
            asdict(check(each, scale.check_size, dtype, clock.device))
            for dtype in scale.dtypes
            for each in subjects(scale, dtype, clock.device)
        ]
        kernels = [time_kernel(each, scale, clock, ceilings) for each in subjects(scale, torch.float16, clock.device)]
    else:
        checks, kernels = earlier["checks"], earlier["kernels"]
    print(f"kernels: {sum(c['passed'] for c in checks)} of {len(checks)} right", flush=True)
    absent = ring_absent(torch.float16, clock.device)
    notes = [] if absent is None else [f"ring kernel: not checked and not timed, {absent}"]
    # What needs no search runs first, for all networks, so that a short budget costs baselines and not networks.
    rows = [measure_net(net, clock, scale.seconds) for net in nets]
    for net, row in zip(nets, rows, strict=True):
        if time.monotonic() > deadline - COMPILE_RESERVE_S:
            row["times"][COMPILED] = {"missing": "no time was left"}
            notes.append(f"{net.name}: torch.compile was not measured, no time was left")
            continue
        _add(
            row,
            COMPILED,
            lambda net=net: runners.compiled_runner(net.module(), _input(net), clock),
            clock,
            scale,
        )  # type: ignore[misc]
    named = {row["network"] for row in rows}
    kept = [row for row in (earlier or {}).get("networks", []) if row["network"] not in named]
    return {
        **_machine(dry_run),
        "dry_run": dry_run,
        "ceilings": asdict(ceilings),
        "checks": checks,
        "kernels": kernels,
        "networks": [*kept, *rows],
        "notes": list(dict.fromkeys([*(earlier or {}).get("notes", []), *notes])),
    }


def time_kernel(each: Subject, scale: Scale, clock: Clock, ceilings: Ceilings) -> dict[str, Any]:
    """Time one kernel at a real size."""
    x, residuals = each.inputs(*(scale.kernel_size or each.size), torch.float16, clock.device)
    out = each.run(x, residuals)
    timing = clock.time(clock.captured(lambda: each.run(x, residuals)), scale.seconds / 4)
    moved, flops = each.traffic(x, residuals, out)
    share, bound = ceilings.share(moved, flops, timing.median_ms)
    rates = {"gb_s": moved / timing.median_ms / 1e6, "tflop_s": flops / timing.median_ms / 1e9}
    return {"kernel": each.name, "shape": list(x.shape), **asdict(timing), **rates, "share": share, "bound_by": bound}


def measure_net(net: Net, clock: Clock, seconds: float) -> dict[str, Any]:
    """Check a network against fp32 and tile against whole, and time it beside the baselines that need no search."""
    x, module = _input(net), net.module()
    graph = _graph(net)
    row: dict[str, Any] = {"network": net.name, "shape": list(net.shape), "dtype": "float16", "times": {}}
    row |= {"peak_bytes": {}, "speed_up": None}
    wanted = runners.reference(module, x, clock.device)
    own = runners.triton_runner(graph, x, clock)
    psnr = _psnr(own.result(), wanted)
    equal = tiled_equal(net, graph, clock.device) if net.tiled else None
    row["check"] = {"psnr_db": psnr, "tiled_equal": equal, "passed": psnr >= MIN_DB and equal is not False}
    row["times"][TRITON] = asdict(clock.time(own.call, seconds))
    row["peak_bytes"][TRITON] = own.peak_bytes
    del own
    _add(row, EAGER, lambda: runners.eager_runner(net.module(), x, clock), clock, seconds)
    _add(row, ORT, lambda: runners.onnx_runner(graph, x, clock), clock, seconds)
    _add(row, CUDNN, lambda: runners.cudnn_runner(graph, x, clock), clock, seconds)
    print(json.dumps({key: row[key] for key in ("network", "check", "times")}), flush=True)
    return row


def tiled_equal(net: Net, graph: Graph, device: str) -> bool:
    """Compare an image run tile by tile, in half precision, with the whole image, bit by bit."""
    height, width, tile = net.tiled or (0, 0, 0)
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    cut = grid(height, width, tile, footprint(graph))
    shapes = [(1, 3, *cut.window), (1, 3, height, width)]
    parts, whole = (TritonSession(runners.triton_bindings(graph, shape, device), (shape,)) for shape in shapes)
    (expected,) = whole.run(image)
    for window in (cut[index] for index in range(len(cut))):
        y, x = window.y, window.x
        (made,) = parts.run(image[:, :, y.start : y.stop, x.start : x.stop])
        core = made[:, :, y.crop : y.crop + y.core_stop - y.core_start, x.crop : x.crop + x.core_stop - x.core_start]
        if not torch.equal(core, expected[:, :, y.core_start : y.core_stop, x.core_start : x.core_stop]):
            return False
    return len(cut) > 1


def _add(row: dict[str, Any], name: str, make: Callable[[], runners.Runner], clock: Clock, seconds: float) -> None:
    """Time a baseline, or note why it can't run."""
    try:
        runner = make()
        row["times"][name] = asdict(clock.time(runner.call, seconds))
        row["peak_bytes"][name] = runner.peak_bytes
    except runners.MissingError as error:
        row["times"][name] = {"missing": str(error)}
    # A baseline that fails is a finding about the baseline; the check of the kernels goes on.
    except Exception as error:  # noqa: BLE001
        row["times"][name] = {"missing": f"it failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    if clock.device == "cuda":
        torch.cuda.empty_cache()


def _compiled(net: Net, clock: Clock) -> runners.Runner:
    return runners.compiled_runner(net.module(), _input(net), clock)


def subjects(scale: Scale, dtype: torch.dtype, device: str) -> list[Subject]:
    """Every layer and chain of the zoo, or of some networks, the ring kernel, and every kernel without a product."""
    chains = chain_subjects(dtype, device, networks=scale.chains)
    return [*layers(dtype, device, networks=scale.networks), *chains, *ring_subjects(dtype, device), *plain_subjects()]


def _warm(nets: list[Net], *, kernels: bool) -> None:
    """Compile what will run in processes side by side; the compiler's cache hands it on."""
    workers = max(1, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(_warm_net, NETS.index(net)) for net in nets]
        waiting += [pool.submit(_warm_kernels, part, workers) for part in range(workers) if kernels]
        for each in waiting:
            each.result()


def _warm_net(index: int) -> None:
    net = NETS[index]
    runners.triton_bindings(_graph(net), net.shape, "cuda")


def _warm_kernels(part: int, parts: int) -> None:
    """Run every `parts`-th kernel once, at the sizes it will be checked and timed at."""
    for dtype in FULL.dtypes:
        for each in subjects(FULL, dtype, "cuda")[part::parts]:
            for height, width in (FULL.check_size, *([each.size] if dtype == torch.float16 else [])):
                each.run(*each.inputs(height, width, dtype, "cuda"))
    torch.cuda.synchronize()


def _graph(net: Net) -> Graph:
    """Capture a network; a small image does, as height and width stay open."""
    small = (*net.shape[:2], *(min(size, 32) for size in net.shape[2:]))
    with torch.no_grad():
        return from_module(net.module(), torch.rand(small))


def _input(net: Net) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    draw = torch.rand if net.shape[2:] != (1, 1) else torch.randn
    return draw(net.shape, generator=generator)


def _psnr(made: Tensor, wanted: Tensor) -> float:
    """PSNR in dB, the peak being the range of the reference."""
    wanted, made = wanted.float().cpu(), made.float().cpu()
    error = (made - wanted).square().mean().item()
    peak = (wanted.max() - wanted.min()).item()
    if not math.isfinite(error):
        return -math.inf
    return 999.0 if error == 0 else 10 * math.log10(peak**2 / error)


def _machine(dry_run: bool) -> dict[str, str]:
    """Name the device and the versions."""
    smi = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "gpu": "dry run on a CPU" if dry_run else torch.cuda.get_device_name(),
        "driver": "none" if dry_run else _told(smi),
        "torch": str(torch.__version__),
        "triton": str(triton.__version__),
        "python": platform.python_version(),
        "commit": _told(["git", "rev-parse", "HEAD"]),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _told(command: list[str]) -> str:
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.strip().splitlines()[0]


def _earlier(path: Path) -> dict[str, Any] | None:
    """Read the record that --only adds to; None where there is none."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        check_record(found)
    except ValueError as error:
        raise SystemExit(f"{path}: is no record of a GPU check: {error}") from error
    return found  # type: ignore[no-any-return]


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except TilefuseError as error:
        raise SystemExit(f"the check failed: {error}") from error
