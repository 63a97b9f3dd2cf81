"""The GPU check, in one command: python -m benchmarks.gpu --json FILE [--only TEXT ...] [--budget S] [--dry-run]

It checks every layer and every network of the zoo against fp32 and tile against whole, measures the device's two
ceilings, and times networks and layers beside every baseline that is installed. Each step runs in a process that can be
killed: one that fails, hangs or runs out of memory is named and costs itself alone. The file is written after every
step. What the budget leaves no time for is left out and named; torch.compile, which searches, comes last. A second run
with --only adds its networks to the file. Needs torch, Triton, NumPy and this repository; safetensors for the bundled
networks' weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_overlap, gpu_shipped
from benchmarks import gpu_tasks as tasks
from benchmarks.gpu_clock import Ceilings
from benchmarks.gpu_nets import Net
from benchmarks.gpu_record import (
    BASELINES,
    COMPILED,
    MIN_DB,
    TRITON,
    Row,
    check_record,
    judged,
    table,
    write,
)
from benchmarks.gpu_steps import Outcome, Step, run_steps
from tilefuse.errors import TilefuseError

# Of the eight minutes that the check may take; processes start and end in the rest.
BUDGET_S = 440.0
# Of that, what the checks may take side by side, compiling as they go.
CHECKS_SHARE = 0.4
# What a step may take; the search of torch.compile is the longest by far.
SETUP_S, CHECK_S, NET_S, KERNEL_S, COMPILE_S = 60.0, 60.0, 60.0, 15.0, 150.0
MOST_WORKERS = 16


def main(arguments: list[str] | None = None) -> int:
    """Measure, write and print; the exit status is 1 where a check is red or not made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to write; an older one is added to with --only")
    parser.add_argument("--only", nargs="*", default=None, metavar="TEXT", help="networks whose name has one of these")
    parser.add_argument("--budget", type=float, metavar="S", help=f"seconds for all of it, {BUDGET_S:.0f} on a GPU")
    parser.add_argument("--dry-run", action="store_true", help="try every step on the CPU; its figures say nothing")
    options = parser.parse_args(arguments)
    dry = options.dry_run
    if not dry and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device; --dry-run tries the steps on a CPU")
    if dry and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--dry-run runs the kernels in Triton's interpreter: set TRITON_INTERPRET=1")
    nets = tasks.scale(dry).nets
    chosen = [i for i, net in enumerate(nets) if options.only is None or any(t in net.name for t in options.only)]
    if not chosen:
        parser.error(f"no network is called so; there are {', '.join(net.name for net in nets)}")
    earlier = _earlier(options.json) if options.only is not None else None
    budget = options.budget if options.budget is not None else math.inf if dry else BUDGET_S
    record = judged(measure(dry, chosen, budget, partial(_save, path=options.json), earlier))
    for each in record["checks"]:
        if not each["passed"]:
            found = "max {max_error:.2e}, rms {rms_error:.2e}, tile equal: {tiled_equal}"
            print(f"RED: {each['kernel']} {each['dtype']}: {each.get('error') or found.format(**each)}")
    for note in record["notes"]:
        print(note)
    print(table(record))
    red = record["red_kernels"] or [row for row in record["networks"] if not row["check"]["passed"]]
    return 1 if red else 0


def measure(
    dry: bool, chosen: list[int], budget: float, save: Callable[[Row], None], earlier: Row | None = None
) -> Row:
    """Run every step, save the record after each, and return it, the rows of an earlier one included.

    Args:
        chosen: the networks by their numbers. budget: seconds.

    Raises:
        SystemExit: the device can't be used at all.
    """
    begun = time.monotonic()
    deadline = begun + budget
    nets, kinds = tasks.scale(dry).nets, range(len(tasks.scale(dry).dtypes) if earlier is None else 0)
    run = partial(_run, dry=dry)
    setup = [Step("machine", tasks.machine, (dry,), SETUP_S), Step("ring", tasks.ring_note, (dry,), SETUP_S)]
    setup += [Step(f"kernels {kind}", tasks.names, (dry, kind), SETUP_S) for kind in kinds]
    found = {step.name: _needed(step, outcome) for step, outcome in run(setup, deadline)}
    rows = {i: _empty(nets[i]) for i in chosen}
    named = {row["network"] for row in rows.values()}
    kept = [row for row in (earlier or {}).get("networks", []) if row["network"] not in named]
    record: Row = {
        **found["machine"], "dry_run": dry, "finished": False, "ceilings": {},
        **{name: (earlier or {}).get(name, []) for name in ("checks", "kernels")},
        "notes": [note for note in (earlier or {}).get("notes", []) if note.partition(": ")[0] not in named],
        "networks": [*kept, *rows.values()],
    }  # fmt: skip
    if found["ring"] is not None:
        _note(record, f"ring kernel: not checked and not timed, {found['ring']}")
    if earlier is None and gpu_shipped.missing() is not None:
        _note(record, f"bundled networks: not checked, {gpu_shipped.missing()}")
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    checks = _checks(dry, chosen, [found[f"kernels {kind}"] for kind in kinds])
    for step, outcome in run(checks, begun + CHECKS_SHARE * budget, workers=workers):
        _take_check(record, rows, step, outcome)
        save(record)
    print(f"kernels: {sum(c['passed'] for c in record['checks'])} of {len(record['checks'])} right", flush=True)
    # A kernel whose check gave no answer may hang or crash again.
    answered = {(row["kernel"], row["dtype"]) for row in record["checks"] if row.get("error") is None}
    half, names = str(tasks.scale(dry).dtypes[0]).removeprefix("torch."), found.get("kernels 0", [])
    timed = [(i, name) for i, name in enumerate(names) if (name, half) in answered]
    for step, outcome in run(_timings(dry, chosen, timed), deadline):
        _take_time(record, rows, step, outcome)
        save(record)
    record["finished"] = True
    save(record)
    return record


def _checks(dry: bool, chosen: list[int], kernels: list[list[str]]) -> list[Step]:
    """List what has no times: networks to be timed first, which take longest to compile, then kernels and the zoo."""
    nets, dtypes = tasks.scale(dry).nets, tasks.scale(dry).dtypes
    made = [Step(f"compile {nets[i].name}", tasks.compile_net, (dry, i), NET_S) for i in chosen if not dry]
    made += [Step(nets[i].name, tasks.tiled_equal, (dry, i), NET_S) for i in chosen if nets[i].tiled]
    for kind, names in enumerate(kernels):
        label = str(dtypes[kind]).removeprefix("torch.")
        made += [Step(f"{name} {label}", tasks.check_kernel, (dry, kind, i), CHECK_S) for i, name in enumerate(names)]
    for kind in range(len(kernels)):
        label, step = str(dtypes[kind]).removeprefix("torch."), gpu_shipped.check_network
        shipped = gpu_shipped.shipped(dry)
        made += [Step(f"network {name} {label}", step, (dry, name, dtypes[kind]), NET_S) for name in shipped]
    return made


def _run(steps: list[Step], deadline: float, *, dry: bool, workers: int = 1) -> Iterator[tuple[Step, Outcome]]:
    """Run steps; a dry run, whose machine may be slow, waits for them."""
    patient = [replace(step, seconds=3600.0) for step in steps] if dry else steps
    return run_steps(patient, deadline, tasks.recover, workers=workers)


def _timings(dry: bool, chosen: list[int], kernels: list[tuple[int, str]]) -> list[Step]:
    """List what is timed, alone on the device: networks and baselines that need no search, kernels, then searches."""
    nets = tasks.scale(dry).nets
    made = [Step("ceilings", tasks.ceilings, (dry,), SETUP_S)]
    for i in chosen:
        made.append(Step(nets[i].name, tasks.measure_net, (dry, i), NET_S))
        quick = [name for name in BASELINES if name != COMPILED]
        made += [Step(nets[i].name, tasks.measure_baseline, (dry, i, name), NET_S) for name in quick]
    made += [Step(name, tasks.time_kernel, (dry, i), KERNEL_S) for i, name in kernels]
    made += gpu_overlap.steps(dry) if kernels else []
    small_first = sorted(chosen, key=lambda i: sum(each.numel() for each in nets[i].module().parameters()))
    made += [Step(nets[i].name, tasks.measure_baseline, (dry, i, COMPILED), COMPILE_S) for i in small_first]
    return made


def _take_check(record: Row, rows: dict[int, Row], step: Step, outcome: Outcome) -> None:
    if outcome.error is not None:
        print(f"{step.name}: {outcome.error}", flush=True)
    if step.function in (tasks.check_kernel, gpu_shipped.check_network):
        kernel, _, dtype = step.name.rpartition(" ")
        failed = {"kernel": kernel, "dtype": dtype, "max_error": None, "rms_error": None, "tiled_equal": False}
        record["checks"].append(outcome.result or {**failed, "passed": False, "error": outcome.error})
    elif step.function is tasks.tiled_equal:
        check = rows[step.arguments[1]]["check"]
        check["tiled_equal"] = outcome.error is None and outcome.result
        if outcome.error is not None:
            check["error"] = f"tiles: {outcome.error}"


def _take_time(record: Row, rows: dict[int, Row], step: Step, outcome: Outcome) -> None:
    if step.function in gpu_overlap.STEPS:
        gpu_overlap.take(record, step, outcome)
    elif step.function is tasks.ceilings:
        record["ceilings"] = outcome.result or {}
        shown = outcome.error or "{copy_gb_s:.0f} GB/s, {half_tflop_s:.0f} TFLOP/s".format(**outcome.result)
        print(f"ceilings: {shown}", flush=True)
    elif step.function is tasks.time_kernel:
        if outcome.error is None:
            record["kernels"].append(_rated(outcome.result, record["ceilings"]))
        else:
            _note(record, f"kernel {step.name}: not timed, {outcome.error}")
    else:
        _take_net(record, rows[step.arguments[1]], step, outcome)


def _take_net(record: Row, row: Row, step: Step, outcome: Outcome) -> None:
    """Enter a network's own time or a baseline's."""
    found = outcome.result or {"missing": f"it failed: {outcome.error}"}
    name = TRITON if step.function is tasks.measure_net else step.arguments[2]
    row["times"][name] = found.get("time", {"missing": found.get("missing")})
    if "peak_bytes" in found:
        row["peak_bytes"][name] = found["peak_bytes"]
    if name == TRITON:
        check = row["check"]
        check["psnr_db"] = found.get("psnr_db")
        if outcome.error is not None:
            check["error"] = outcome.error
        right = check["psnr_db"] is not None and check["psnr_db"] >= MIN_DB
        check["passed"] = right and check["tiled_equal"] is not False
    if outcome.error is not None:
        _note(record, f"{step.name}: {name} was not measured, {outcome.error}")
    print(f"{step.name}, {name}: {json.dumps(row['times'][name])}", flush=True)


def _rated(row: Row, ceilings: Row) -> Row:
    """Give a kernel's rates, and their share of the ceiling that binds."""
    moved, flops, ms = row.pop("bytes"), row.pop("flops"), row["median_ms"]
    share, bound = Ceilings(**ceilings).share(moved, flops, ms) if ceilings else (None, None)
    return {**row, "gb_s": moved / ms / 1e6, "tflop_s": flops / ms / 1e9, "share": share, "bound_by": bound}


def _empty(net: Net) -> Row:
    """Give a network's row before anything is known."""
    check = {"psnr_db": None, "tiled_equal": None, "passed": False}
    return {
        "network": net.name, "shape": list(net.shape), "dtype": "float16", "check": check, "times": {},
        "peak_bytes": {}, "speed_up": None,
    }  # fmt: skip


def _needed(step: Step, outcome: Outcome) -> Any:
    if outcome.error is not None:
        raise SystemExit(f"the check failed at its start, {step.name}: {outcome.error}")
    return outcome.result


def _note(record: Row, note: str) -> None:
    if note not in record["notes"]:
        record["notes"].append(note)


def _save(record: Row, path: Path) -> None:
    write(judged(record), path)


def _earlier(path: Path) -> Row | None:
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
