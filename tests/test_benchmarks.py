"""The benchmarks measure what they say: peers agree with torch, ratios point the right way, compare goes red."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import numbers, plots, tables
from benchmarks.compare import changes
from benchmarks.nets import CASES, Case, StyleNetwork
from benchmarks.peers import PEERS, Direct
from benchmarks.records import Record, machine_folder, new_record, read_record
from benchmarks.replay import Replay
from tests.conftest import Compare
from tilefuse.export.generators.dcgan import DCGAN
from tilefuse.export.generators.espcn import ESPCN

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
SMALL = Case("espcn-x2", lambda: _seeded(ESPCN(2, features=(8, 4))), (20, 12))
LATENT = Case("dcgan", lambda: _seeded(DCGAN(5, 4, 1, 2)), None, batch=3, latent=(5, 1, 1), value_range=(-1, 1))


def _seeded(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return module.eval()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "peer",
    [pytest.param(p, id=p.name, marks=[pytest.mark.slow] if p.name == "torch.compile" else []) for p in PEERS],
)
def test_peers_agree_with_the_module(peer: object, assert_close: Compare) -> None:
    for case in (SMALL, LATENT):
        x = case.tensor()
        with torch.no_grad():
            expected = case.build()(x)
        found = peer.prepare(case.build(), x)(x)
        assert found.dtype is torch.float32
        assert_close(found, expected, max_abs=1e-4 if peer.precision == "fp32" else 0.05, what=f"{peer.name} {case}")


def test_a_direct_call_is_an_8_bit_image() -> None:
    network = nn.Upsample(scale_factor=2)
    direct = Direct(SMALL, network, SMALL.image())
    np.testing.assert_array_equal(direct(), SMALL.image().repeat(2, 0).repeat(2, 1))
    assert len(direct.network_s) == 1
    gray = replace(SMALL, channels=1)
    np.testing.assert_array_equal(Direct(gray, lambda x: x, gray.image())(), gray.image())


def test_latents_come_back_as_images() -> None:
    pixels = Direct(LATENT, lambda z: torch.full((3, 1, 4, 4), -1.0), np.empty(0, np.uint8))()
    assert pixels.shape == (3, 4, 4, 1)
    assert pixels.max() == 0


def test_the_suite_has_what_the_readme_claims() -> None:
    assert {numbers.title(case) for case in CASES} == {
        "espcn-x4 1920x1080",
        "espcn-x2 480x270",
        "compact-x4 320x180",
        "compact-x4 960x540",
        "rrdb-6 256x256",
        "fsrcnn-x2 960x540",
        "style 640x360",
        "dcgan-textures batch 64",
    }


@pytest.mark.thorough
def test_nets_without_training_span_the_range_of_an_image() -> None:
    for case in CASES:
        if case.bundled is None:
            image = replace(case, size=(32, 24)).image()
            with torch.no_grad():
                result = case.build()(case.tensor(image))
            assert result.std() > 0.05, case.name
            assert 0.3 < result.mean() < 0.7, case.name


def test_the_style_network_keeps_the_size() -> None:
    with torch.no_grad():
        assert StyleNetwork(4, 1).eval()(torch.rand(1, 3, 20, 28)).shape == (1, 3, 20, 28)


class Slept:
    """A peer that does the right thing, or a wrong one, after the asked time."""

    def __init__(self, name: str, precision: str, error: float = 0.0) -> None:
        self.name, self.precision, self.error = name, precision, error

    def prepare(self, module: nn.Module, example: Tensor):  # type: ignore[no-untyped-def]
        if self.error < 0:
            raise RuntimeError("can't run this net\nat all")

        def call(x: Tensor) -> Tensor:
            with torch.no_grad():
                return module(x) + self.error

        return call


@pytest.mark.thorough
def test_a_case_holds_the_engines_against_the_peers() -> None:
    peers = (
        Slept("exact", "fp32"),
        Slept("close", "bf16", 0.001),
        Slept("wrong", "bf16", 0.2),
        Slept("no", "fp32", -1),
    )
    row = numbers.measure(SMALL, peers, rounds=2, budget_s=5)
    assert row["refused"] == {"no": "RuntimeError: can't run this net"}
    assert set(row["times"]) == {"tilefuse", "tilefuse fp32", "exact", "close", "wrong"}
    assert row["best_fp32_peer"] == "exact"
    assert row["best_peer"] in ("exact", "close")
    assert row["times"]["wrong"]["max_levels"] > 1
    assert row["times"]["tilefuse fp32"]["precision"] == "fp32"
    assert row["times"]["tilefuse"]["backend"]
    # Not held against the calls' time: a thread that has to be woken takes as long as twenty such calls.
    assert row["times"]["exact"]["network_ms"] > 0
    json.dumps(row)


def test_only_what_is_near_the_fastest_is_timed_in_turns() -> None:
    estimates = {"a": 1.0, "b": 1.7, "c": 3.0, "d": 5.0, "e": 9.0}
    assert numbers.contenders(estimates, {"c", "d", "e"}) == ["a", "b", "c", "d"]
    assert numbers.contenders({}, {"c"}) == []


def test_a_wrong_peer_is_no_best_peer_and_ratios_above_one_are_faster() -> None:
    def timed(ms: float, precision: str, levels: float) -> dict[str, object]:
        return {"median_ms": ms, "precision": precision, "max_levels": levels, "psnr_db": 60.0 if levels else None}

    verdict = numbers.judge(
        {
            "tilefuse": timed(10, "bf16", 1),
            "tilefuse fp32": timed(20, "fp32", 0),
            "a": timed(12, "bf16", 1),
            "b": timed(5, "bf16", 2),
            "c": timed(30, "fp32", 0),
        }
    )
    assert (verdict["best_peer"], verdict["ratio"]) == ("a", 1.2)
    assert (verdict["best_any_peer"], verdict["ratio_any"]) == ("b", 0.5)
    assert (verdict["best_fp32_peer"], verdict["ratio_fp32"]) == ("c", 1.5)
    text = numbers.summary([{"case": "x", **verdict}])
    assert "behind: x 0.50x" in text
    assert "fp32: geometric mean 1.50x; behind: none" in text


def test_geometric_mean() -> None:
    assert numbers.geometric_mean([1, 4]) == pytest.approx(2)


def test_compare_goes_red_on_a_slower_record(tmp_path: Path) -> None:
    rows = [{"case": "a", "median_ms": 10.0}, {"case": "b", "median_ms": 20.0}]
    before, same, slower, less = (tmp_path / name for name in ("a.json", "same.json", "slower.json", "less.json"))
    new_record("numbers", rows).write(before)
    new_record("numbers", [rows[0] | {"median_ms": 10.2}, rows[1] | {"median_ms": 9.0}]).write(same)
    new_record("numbers", [rows[0], rows[1] | {"median_ms": 25.0}]).write(slower)
    new_record("numbers", rows[:1]).write(less)
    assert _compare(before, same).returncode == 0
    red = _compare(before, slower)
    assert red.returncode == 1
    assert "1.25x slower" in red.stdout.splitlines()[0]
    gone = _compare(before, less)
    assert gone.returncode == 1
    assert "b" in gone.stdout
    assert [change.case for change in changes(read_record(before), read_record(slower))] == ["b", "a"]


def test_records_that_are_none_are_refused(tmp_path: Path) -> None:
    record, other = tmp_path / "a.json", tmp_path / "b.json"
    record.write_text("[]")
    with pytest.raises(SystemExit, match=r"a\.json: is no record"):
        read_record(record)
    new_record("numbers").write(record)
    new_record("latency").write(other)
    assert "of the suite" in _compare(record, other).stderr
    assert _compare(tmp_path / "none.json", other).returncode == 1


def test_a_machine_has_a_folder_of_its_own() -> None:
    assert machine_folder().name.startswith("cpu-")
    assert machine_folder().parent == ROOT / "benchmarks" / "results"


def test_numbers_resume_where_the_file_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    done = tmp_path / "numbers.json"
    row = {"case": "dcgan-textures batch 64", "median_ms": 1.0, "ratio": 2.0, "ratio_any": 2.0, "ratio_fp32": 2.0}
    Record("numbers", "m", "d", (row,)).write(done)
    arguments = ["numbers", "--json", str(done), "--only", "dcgan-textures", "--resume"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(numbers, "measure", lambda *_, **__: pytest.fail("the row is there already"))
    numbers.main()
    assert "geometric mean 2.00x" in capsys.readouterr().out


def _engine_row(backend: str, ms: float) -> dict[str, object]:
    return {"backend": backend, "precision": "fp32", "median_ms": ms}


def test_tables_are_written_between_their_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"tilefuse": _engine_row("ncnn", 10.0), "openvino f32": {"median_ms": 8.0}}
    row = {"case": "a 1x1", "net": "a", "size": "1x1", "median_ms": 10.0, "best_peer": "openvino f32", "times": times}
    row |= {"ratio": 0.8, "ratio_fp32": 1.5, "best_fp32_peer": "openvino f32"}
    new_record("numbers", [row]).write(tmp_path / "numbers.json")
    new_record("tiling", [{"case": "t", "windows": 4, "computed": 1.1, "median_ms": 5.0, "of_whole": 1.2}]).write(
        tmp_path / "tiling.json"
    )
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- numbers:begin -->\nold\n<!-- numbers:end -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["tables", "--results", str(tmp_path), "--readme", str(readme)])
    with pytest.raises(SystemExit, match="no markers for: tiling"):
        tables.main()
    text = readme.read_text()
    assert text.startswith("before\n<!-- numbers:begin -->\n| net |")
    assert text.endswith("<!-- numbers:end -->\nafter\n")
    assert "old" not in text
    assert "| a | 1x1 | 10.0 ms | ncnn fp32 | openvino f32, 8.0 ms | 0.80× (behind) | 1.50× of openvino f32 |" in text
    assert "**0.80×** | **1.50×**" in text


def test_every_table_has_a_head_and_a_row() -> None:
    rows = {
        "overhead": {"case": "x", "median_ms": 1500.0, "beside_ms": 1410.0, "overhead_share": 0.084},
        "fresh": {"case": "x", "median_ms": 1500.0, "growth_bytes": 3 << 20},
        "tiling": {"case": "x", "windows": 4, "computed": 1.25, "median_ms": 1500.0, "of_whole": 1.1},
    }
    found = {suite: tables.TABLES[suite]([row]).splitlines() for suite, row in rows.items()}
    assert all(len(lines) == 3 for lines in found.values())
    assert found["overhead"][2] == "| x | 1.50 s | 6.0% | 8.4% |"
    assert found["fresh"][2] == "| x | 1.50 s | 3 MiB |"
    assert found["tiling"][2] == "| x | 4 | 1.25× | 1500.0 ms | 1.10× |"


def test_plots_are_svg_of_the_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "case": f"{name} {edge}",
            "net": "espcn-x2",
            "name": name,
            "precision": "fp32",
            "input_px": edge**2,
            "median_ms": edge / speed,
            "gflops": 10.0 * speed,
            "flops_a_byte": 30.0,
            "matmul_gflops": 100.0,
            "copy_gbs": 10.0,
            "max_levels": levels,
        }
        for name, speed, levels in (("tilefuse default", 2, 1.0), ("onnxruntime", 1, 0.0), ("openvino bf16", 3, 2.0))
        for edge in (64, 128)
    ]
    new_record("latency", rows).write(tmp_path / "latency.json")
    monkeypatch.setattr(sys, "argv", ["plots", "--results", str(tmp_path), "--docs", str(tmp_path)])
    plots.main()
    drawn = {name: (tmp_path / f"{name}.svg").read_text() for name in ("latency", "roofline")}
    for text in drawn.values():
        assert "</svg>" in text
        assert ">tilefuse default<" in text
        assert ">onnxruntime<" in text
    assert ">openvino bf16 (2 levels off)<" in drawn["latency"]
    assert "ceiling fp32" in drawn["roofline"]
    plots.main()
    assert {name: (tmp_path / f"{name}.svg").read_text() for name in drawn} == drawn


def test_recorded_durations_are_what_is_counted() -> None:
    played = Replay()
    counted: list[float] = []

    class Pedantic:
        def pedantic(self, call, rounds: int, iterations: int) -> None:  # type: ignore[no-untyped-def]
            for _ in range(rounds):
                begin = played.now()
                call()
                counted.append(played.now() - begin)

    played.play(Pedantic(), [1.0, 0.5, 2.0])
    assert counted == [1.0, 0.5, 2.0]


@pytest.mark.thorough
def test_every_suite_is_found_by_make_bench() -> None:
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "pytest benchmarks" in line)
    command = [sys.executable, *shlex.split(line)[1:], "--collect-only"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for name in ("bench_latency", "bench_tiling", "bench_codec", "bench_job", "bench_cold_start", "bench_memory"):
        assert f"::{name}[" in found


def _compare(before: Path, after: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.compare", str(before), str(after)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_readme_says_what_the_weights_say() -> None:
    from benchmarks.evaluation import headers, tables

    assert tables(headers()) in Path(__file__).parents[1].joinpath("README.md").read_text()
