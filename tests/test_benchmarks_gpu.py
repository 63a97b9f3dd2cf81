"""The GPU check: its steps on a CPU, what it may claim, and the README's table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu, gpu_kernels, gpu_overlap, gpu_runners, gpu_shipped, gpu_table, gpu_tasks
from benchmarks.gpu_chains import by_tiles, chain_subjects
from benchmarks.gpu_clock import Ceilings, HostClock, Timing
from benchmarks.gpu_nets import NETS, TINY
from benchmarks.gpu_plain import plain_subjects
from benchmarks.gpu_record import COMPILED, EAGER, TRITON, check_record, geometric_mean, judged, speed_up, table, write
from benchmarks.gpu_steps import NO_TIME, Outcome, Step
from tilefuse.backends.triton.operations import Chained
from tilefuse.errors import BackendError
from tilefuse.kernels.convolve import run_layer
from tilefuse.kernels.epilogue import Epilogue
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.layer import pack_conv2d
from tilefuse.kernels.network_cases import PUBLISHED

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]


def timed(ms: float) -> dict[str, float]:
    return {"median_ms": ms, "p20_ms": ms, "p80_ms": ms, "rounds": 5}


def network(name: str, own: float, eager: float, compiled: float, passed: bool = True) -> dict[str, Any]:
    return {
        "network": name,
        "shape": [1, 3, 540, 960],
        "dtype": "float16",
        "check": {"psnr_db": 60.0, "tiled_equal": True, "passed": passed},
        "times": {TRITON: timed(own), EAGER: timed(eager), COMPILED: timed(compiled)},
        "peak_bytes": {TRITON: 50, EAGER: 100},
        "speed_up": None,
    }


def record(*rows: dict[str, Any], red: bool = False) -> dict[str, Any]:
    checked = {"kernel": "compact conv", "dtype": "float16", "max_error": 1.0, "rms_error": 1.0, "tiled_equal": True}
    words = {"gpu": "GPU", "driver": "1", "torch": "2", "triton": "3", "python": "3.12", "commit": "c" * 40}
    lists = {"checks": [checked | {"passed": not red}], "kernels": [], "networks": list(rows), "notes": []}
    ceilings = {"copy_gb_s": 4300.0, "half_tflop_s": 790.0}
    return words | lists | {"date": "2026-01-02", "dry_run": False, "finished": True, "ceilings": ceilings}


def test_a_speed_up_is_against_the_fastest_baseline() -> None:
    found = judged(record(network("A", 2.0, 6.0, 4.0), network("B", 1.0, 8.0, 9.0)))
    assert [row["speed_up"] for row in found["networks"]] == [2.0, 8.0]
    assert found["geometric_mean"] == pytest.approx(4.0)
    assert "2.00×" in table(found)
    assert "4 ms, torch.compile max-autotune" in table(found)
    assert "0.50×" in table(found)


def test_no_speed_up_is_claimed_where_a_check_is_red() -> None:
    found = judged(record(network("A", 2.0, 6.0, 4.0, passed=False), network("B", 1.0, 8.0, 9.0)))
    assert [row["speed_up"] for row in found["networks"]] == [None, 8.0]
    assert found["geometric_mean"] is None
    assert "none: a check is red" in table(found)
    found = judged(record(network("A", 2.0, 6.0, 4.0), red=True))
    assert found["networks"][0]["speed_up"] is None
    assert found["red_kernels"] == ["compact conv float16"]
    assert "×" not in table(found).split("\n")[2].split("|")[4]
    # Networks are timed in halves: a kernel that is wrong in another type takes nothing back.
    other = record(network("A", 2.0, 6.0, 4.0), red=True)
    other["checks"] = [each | {"dtype": "bfloat16"} for each in other["checks"]]
    assert judged(other)["networks"][0]["speed_up"] == 2.0
    assert judged(other)["red_kernels"] == ["compact conv bfloat16"]


def test_a_run_that_was_cut_short_says_so_and_claims_no_mean() -> None:
    row = network("B", 1.0, 8.0, 9.0)
    row |= {"times": {}, "peak_bytes": {}, "check": {"psnr_db": None, "tiled_equal": None, "passed": False}}
    cut = judged(record(network("A", 2.0, 6.0, 4.0)) | {"finished": False, "ceilings": {}})
    assert cut["networks"][0]["speed_up"] == 2.0
    assert cut["geometric_mean"] is None
    assert "The run was cut short." in table(cut)
    assert "Measured ceilings: none." in table(cut)
    assert "| B | did not run | none ran | none | — | — |" in table(judged(record(row)))


def test_without_a_baseline_there_is_no_speed_up() -> None:
    row = network("A", 2.0, 6.0, 4.0)
    row["times"] = {TRITON: timed(2.0), EAGER: {"missing": "it failed"}}
    assert speed_up(row) is None
    assert geometric_mean([]) is None
    assert "none ran" in table(judged(record(row)))


def test_a_record_is_checked_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "results" / "gpu.json"
    found = judged(record(network("A", 2.0, 6.0, 4.0)))
    write(found, path)
    assert json.loads(path.read_text()) == found
    for field in ("gpu", "ceilings", "networks"):
        with pytest.raises(ValueError, match=f"{field}: a"):
            check_record({key: value for key, value in found.items() if key != field})
    broken = {**found, "networks": [{"network": "A"}]}
    with pytest.raises(ValueError, match="networks: a row without shape"):
        write(broken, tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


def test_the_readme_has_the_newest_real_record_or_says_there_is_none(tmp_path: Path) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(f"before\n{gpu_table.BEGIN}\nold\n{gpu_table.END}\nafter\n")
    (results / "cpu").mkdir(parents=True)
    (results / "cpu" / "models.json").write_text('{"machine": "cpu"}')

    def tables() -> str:
        sys_argv = ["gpu_table", "--readme", str(readme), "--results", str(results)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gpu_table", *sys_argv[1:]], cwd=ROOT, capture_output=True, text=True
        )
        return done.stderr

    assert tables() == ""
    assert readme.read_text() == f"before\n{gpu_table.BEGIN}\n{gpu_table.NONE}\n{gpu_table.END}\nafter\n"
    write(judged(record(network("Old", 2.0, 6.0, 4.0))), results / "h200" / "1.json")
    write({**judged(record(network("New", 2.0, 6.0, 4.0))), "date": "2026-02-01"}, results / "h200" / "2.json")
    assert "New" in gpu_table.newest(results)
    assert "Old" not in gpu_table.newest(results)
    write({**judged(record(network("A", 2.0, 6.0, 4.0))), "dry_run": True}, results / "h200" / "3.json")
    assert "record of a dry run" in tables()
    with pytest.raises(SystemExit, match=r"3\.json: is the record of a dry run"):
        gpu_table.newest(results)
    readme.write_text("no markers")
    assert "write both" in tables()


def test_the_repository_has_no_record_of_a_dry_run() -> None:
    assert gpu_table.newest(gpu_table.RESULTS)


def here(steps: list[Step], deadline: float, recover: Callable[[], None], *, workers: int) -> Iterator[Any]:
    """Run steps in this process, whose patches other processes would not see."""
    del recover, workers
    for step in steps:
        if time.monotonic() >= deadline:
            yield step, Outcome(error=NO_TIME)
            continue
        try:
            yield step, Outcome(step.function(*step.arguments))
        except BackendError as error:
            yield step, Outcome(error=f"BackendError: {error}")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a dry run of one network, one layer, one chain and one kernel without a product."""
    one = replace(gpu_tasks.DRY, nets=TINY[:1], networks=("head",), check_size=(7, 8), kernel_size=(2, 3))
    heads = tuple(case for case in gpu_kernels.CASES if case.network == "head" and case.outputs == 1)
    monkeypatch.setattr(gpu_kernels, "CASES", heads)
    monkeypatch.setattr(gpu_kernels, "CUT", (2, 2))
    monkeypatch.setattr(gpu_tasks, "DRY", one)
    monkeypatch.setattr(gpu_tasks, "plain_subjects", lambda: plain_subjects()[:1])
    monkeypatch.setattr(gpu_tasks, "chain_subjects", lambda *of, **networks: chain_subjects(*of, **networks)[:1])
    monkeypatch.setattr(gpu, "run_steps", here)
    monkeypatch.setattr(gpu_overlap, "TINY", ())
    monkeypatch.setattr(gpu_shipped, "shipped", lambda dry: ())
    yield
    for kept in (gpu_tasks._subjects, gpu_tasks._graph, gpu_tasks._clock):
        kept.cache_clear()


def test_every_step_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    path = tmp_path / "dry.json"
    assert gpu.main(["--dry-run", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    check_record(found)
    assert found["dry_run"]
    assert found["finished"]
    assert [check["passed"] for check in found["checks"]] == [True, True, True]
    assert [check["kernel"].split()[1] for check in found["checks"]] == ["conv", "chain", "gate"]
    assert "ring kernel: not checked and not timed, Triton's interpreter has no Gluon" in found["notes"]
    assert [each["bound_by"] in ("memory", "matrix") for each in found["kernels"]] == [True, True, True]
    (row,) = found["networks"]
    assert row["check"]["tiled_equal"] is True
    assert row["times"][COMPILED] == {"missing": "it tunes for a GPU"}
    assert row["speed_up"] == pytest.approx(speed_up(row))
    other = {"psnr_db": 70.0, "time": timed(1.0), "peak_bytes": 1}
    monkeypatch.setattr(gpu_tasks, "measure_net", lambda *_: other)
    write(found | {"networks": [network("Other", 1.0, 2.0, 3.0), row], "notes": ["ESPCN tiny: old"]}, path)
    assert gpu.main(["--dry-run", "--json", str(path), "--only", "ESPCN"]) == 0
    added = json.loads(path.read_text())
    assert [each["network"] for each in added["networks"]] == ["Other", "ESPCN tiny"]
    assert added["networks"][1]["check"]["psnr_db"] == 70.0
    assert (added["checks"], added["kernels"]) == (found["checks"], found["kernels"])
    assert "ESPCN tiny: old" not in added["notes"]


def test_what_fails_costs_itself_and_the_file_has_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path, states = tmp_path / "dry.json", list[dict[str, Any]]()
    check, baseline, save = gpu_tasks.check_kernel, gpu_tasks.measure_baseline, gpu._save

    def broken(dry: bool, dtype: int, index: int) -> dict[str, Any]:
        if index == 1:
            raise BackendError("no such instruction")
        wrong = {"max_error": 0.25, "tiled_equal": False, "passed": False} if index == 2 else {}
        return check(dry, dtype, index) | wrong

    def absent(dry: bool, index: int, name: str) -> dict[str, Any]:
        if name == EAGER:
            raise BackendError("out of memory")
        return baseline(dry, index, name)

    def saved(record: dict[str, Any], path: Path) -> None:
        save(record, path)
        states.append(json.loads(path.read_text()))

    monkeypatch.setattr(gpu_tasks, "check_kernel", broken)
    monkeypatch.setattr(gpu_tasks, "measure_baseline", absent)
    monkeypatch.setattr(gpu, "_save", saved)
    monkeypatch.setattr(gpu_shipped, "missing", lambda: "safetensors is not installed")
    assert gpu.main(["--dry-run", "--json", str(path)]) == 1
    found = states[-1]
    assert [each["passed"] for each in found["checks"]] == [True, False, False]
    assert "bundled networks: not checked, safetensors is not installed" in found["notes"]
    told = capsys.readouterr().out
    assert "float16: BackendError: no such instruction" in told
    assert "RED: span gate float16: max 2.50e-01, rms " in told
    assert found["checks"][1]["error"] == "BackendError: no such instruction"
    assert len(found["red_kernels"]) == 2
    assert [each["kernel"] for each in found["kernels"]] == [found["checks"][i]["kernel"] for i in (0, 2)]
    (row,) = found["networks"]
    assert "median_ms" in row["times"][TRITON]
    assert row["times"][EAGER] == {"missing": "it failed: BackendError: out of memory"}
    assert row["speed_up"] is None
    # After every step: so much as had been found by then.
    assert [len(each["checks"]) for each in states[:4]] == [0, 1, 2, 3]
    assert [each["finished"] for each in states] == [False] * (len(states) - 1) + [True]


def test_a_short_budget_names_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    path, begun = tmp_path / "dry.json", time.monotonic()

    def slow(*_: object) -> dict[str, float]:
        monkeypatch.setattr(gpu.time, "monotonic", lambda: begun + 1000.0)
        return {"copy_gb_s": 1.0, "half_tflop_s": 1.0}

    monkeypatch.setattr(gpu_tasks, "ceilings", slow)
    assert gpu.main(["--dry-run", "--json", str(path), "--budget", "900"]) == 1
    found = json.loads(path.read_text())
    assert found["finished"]
    assert len(found["checks"]) == 3
    assert f"ESPCN tiny: {TRITON} was not measured, {NO_TIME}" in found["notes"]
    assert f"ESPCN tiny: {COMPILED} was not measured, {NO_TIME}" in found["notes"]
    assert found["kernels"] == []


def test_a_wrong_kernel_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "CUT", (2, 2))
    (layered,) = [
        each for each in gpu_kernels.layers(torch.float32, "cpu", networks=("head",)) if each.case.outputs == 1
    ]
    assert gpu_kernels.check(layered, (5, 6), torch.float32, "cpu").passed
    off = replace(layered, run=lambda x, r: layered.run(x, r) * 1.01)
    found = gpu_kernels.check(off, (5, 6), torch.float32, "cpu")
    assert not found.passed
    assert found.tiled_equal
    assert found.max_error == pytest.approx(0.01, rel=0.2)
    calls: list[int] = []

    def drifting(x: torch.Tensor, residuals: list[torch.Tensor]) -> torch.Tensor:
        calls.append(1)
        return layered.run(x, residuals) + 1e-7 * len(calls)

    assert not gpu_kernels.check(replace(layered, run=drifting), (5, 6), torch.float32, "cpu").tiled_equal


def test_a_chain_is_beside_its_layers() -> None:
    chain, layers = chain_subjects(torch.float16, "cpu", networks=("pggan",))
    assert (chain.name, layers.name) == ("pggan chain 16->16->3 x1", "pggan layers 16->16->3 x1")
    x, residuals = chain.inputs(5, 6, torch.float16, "cpu")
    assert torch.equal(chain.run(x, residuals), layers.run(x, residuals))


def test_tiles_take_the_place_of_strips_for_the_comparison_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    launched, run = list[str](), Launch.run
    monkeypatch.setattr(Launch, "run", lambda launch: (launched.append(launch.name.split()[0]), run(launch))[1])
    layer = pack_conv2d(torch.randn(32, 16, 3, 3, dtype=torch.float16) / 12, padding=(1, 1, 1, 1))
    x = torch.randn(1, 4, 5, 16, dtype=torch.float16)
    tiles, strips = by_tiles(x, layer, epilogue=Epilogue()), run_layer(x, layer, epilogue=Epilogue())
    assert launched == ["conv2d_tma", "conv2d_rows"]
    assert torch.equal(tiles, strips)


def test_every_kernel_without_a_product_is_right_and_tiles() -> None:
    for each in plain_subjects():
        found = gpu_kernels.check(each, (21, 27), torch.float16, "cpu")
        assert found.passed, found
    assert len({each.name for each in plain_subjects()}) == len(plain_subjects())


def test_a_network_of_the_zoo_is_right_and_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu_shipped.check_network(True, "ESPCN x2", torch.float16)
    assert found["passed"]
    assert found["tiled_equal"]
    assert 0 < found["rms_error"] <= found["max_error"] < 0.01
    run = Chained.run

    def shifted(chained: Chained, reads: list[Tensor], writes: list[Tensor]) -> None:
        run(chained, reads, writes)
        writes[1].add_(0.05)

    def uneven(chained: Chained, reads: list[Tensor], writes: list[Tensor]) -> None:
        run(chained, reads, writes)
        if reads[0].shape[1] < 20:
            writes[1].mul_(1.001)

    for fault, expected in ((shifted, (False, True)), (uneven, (True, False))):
        monkeypatch.setattr(Chained, "run", fault)
        found = gpu_shipped.check_network(True, "ESPCN x2", torch.float16)
        right = found["rms_error"] < 10 ** (-gpu_shipped.LEAST_DB[torch.float16] / 20)
        assert (right, found["tiled_equal"]) == expected, found
        assert not found["passed"]


def test_every_network_of_the_zoo_is_a_step_in_every_type(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = gpu._checks(False, [], [[], [], []])
    assert len(steps) == 3 * len(gpu_shipped.names())
    assert {step.arguments[2] for step in steps} == {torch.float16, torch.bfloat16, torch.float32}
    monkeypatch.setattr(gpu_shipped, "find_spec", lambda _: None)
    assert gpu_shipped.missing() == "safetensors is not installed"
    assert gpu_shipped.shipped(False) == tuple(PUBLISHED)


def test_the_networks_of_the_claim_are_all_there() -> None:
    names = [net.name for net in NETS]
    assert len(names) == 11
    assert sum("RRDB" in name for name in names) == 4
    assert {"DCGAN 64x64 batch 64", "Style 1920x1080", "SPAN x2 1920x1080"} <= set(names)


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "x.json")
    with pytest.raises(SystemExit):
        gpu.main(["--json", path, "--dry-run", "--only", "resnet"])
    assert "there are ESPCN tiny" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main(["--json", path])
        assert "finds no CUDA device" in capsys.readouterr().err
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SystemExit, match="is no record of a GPU check"):
        gpu.main(["--json", path, "--dry-run", "--only", "ESPCN"])


def test_ceilings_and_times() -> None:
    assert Timing.of([1.0, 2.0, 3.0, 4.0, 5.0]).median_ms == 3.0
    assert Ceilings(1000.0, 100.0).share(10**9, 10**9, 2.0) == (0.5, "memory")
    assert Ceilings(1000.0, 100.0).share(10**3, 10**11, 2.0) == (0.5, "matrix")
    calls: list[int] = []
    assert HostClock().time(lambda: calls.append(1), 1.0).rounds == 1
    with pytest.raises(gpu_runners.MissingError, match="tunes for a GPU"):
        gpu_runners.compiled_runner(torch.nn.Identity(), torch.zeros(1), HostClock())


def test_it_needs_nothing_but_the_repository(tmp_path: Path) -> None:
    """Without an installation, and without the libraries that only images and the command line need."""
    code = (
        "import sys\n"
        "blocked = {'rich', 'click', 'PIL', 'safetensors', 'tifffile', 'platformdirs', 'onnx', 'jinja2'}\n"
        "class Bare:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in blocked: raise ImportError(name)\n"
        "sys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in repr(each).lower()]\n"
        "sys.meta_path.insert(0, Bare())\n"
        "sys.path[:] = [each for each in sys.path if 'editable' not in each]\n"
        "from benchmarks import gpu\n"
        "import tilefuse; print(tilefuse.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "tilefuse-" in done.stdout
