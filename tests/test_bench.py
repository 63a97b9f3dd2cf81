"""Measuring: the summary of rounds, what is dropped, the ceilings, and the record that `tilefuse bench` writes."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

from tests.test_cli import one_line, tilefuse
from tilefuse import cli, load
from tilefuse.bench import DEFAULT, DRAWN, Bench, Row, bench, checked_names, work_of
from tilefuse.commands.bench import _LEGEND, print_bench
from tilefuse.errors import UsageError
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.quality import max_levels, psnr, ssim
from tilefuse.resident import peak_growth
from tilefuse.roofline import Ceiling, measure_ceiling, traffic_bytes
from tilefuse.sample import sample_picture
from tilefuse.source import load_model
from tilefuse.timing import Timing, interleave

pytestmark = pytest.mark.thorough


class FakeClock:
    """A clock that stands still until a call takes its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def call(self, name: str, *seconds: float):  # type: ignore[no-untyped-def]
        left = iter(seconds)

        def run() -> None:
            self.order.append(name)
            self.now += next(left)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr("tilefuse.timing.time.perf_counter", lambda: fake.now)
    return fake


def test_rounds_are_interleaved_after_a_warm_up_that_does_not_count(clock: FakeClock) -> None:
    found = interleave({"a": clock.call("a", 9, 1, 2), "b": clock.call("b", 9, 3, 4)}, rounds=2)
    assert clock.order == ["a", "b"] * 3
    assert found == {"a": [1, 2], "b": [3, 4]}


def test_a_call_clearly_behind_is_dropped_and_told_by_its_warm_up(clock: FakeClock) -> None:
    calls = {"fast": clock.call("fast", 1, 1, 1), "slow": clock.call("slow", 5), "near": clock.call("near", 2, 2, 2)}
    found = interleave(calls, rounds=2, drop_factor=3)
    assert found == {"fast": [1, 1], "slow": [5], "near": [2, 2]}


def test_threads_come_to_rest_before_a_turn(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    # ONNX Runtime, called as by a user, spins for 50 ms.
    monkeypatch.setattr("tilefuse.timing.time.sleep", lambda s: clock.order.append("rest" if s > 0.05 else "no rest"))
    interleave({"a": clock.call("a", 1, 1), "b": clock.call("b", 0.1, 0.1, 0.1)}, rounds=1)
    assert clock.order == ["rest", "a", "rest", "b"] * 2 + ["b"]


def test_a_brief_call_is_timed_after_one_that_wakes_its_threads(clock: FakeClock) -> None:
    found = interleave({"a": clock.call("a", 0.1, 0.1, 0.02, 0.1, 0.03), "b": clock.call("b", 1, 1, 1)}, rounds=2)
    assert clock.order == ["a", "b", "a", "a", "b", "a", "a", "b"]
    assert {name: [round(t, 6) for t in seconds] for name, seconds in found.items()} == {"a": [0.02, 0.03], "b": [1, 1]}


def test_no_round_begins_past_the_budget(clock: FakeClock) -> None:
    assert interleave({"a": clock.call("a", 1, 4, 4, 4)}, rounds=3, budget_s=5) == {"a": [4, 4]}


def test_a_timing_is_median_and_percentiles() -> None:
    timing = Timing.of([5, 1, 2, 3, 4])
    assert (timing.median_s, timing.rounds) == (3, 5)
    assert timing.p20_s == pytest.approx(1.8)
    assert timing.p80_s == pytest.approx(4.2)


def test_quality_of_known_errors() -> None:
    reference = sample_picture(40, 50)
    off = (reference.astype(int) + np.where(reference < 128, 2, -2)).astype(np.uint8)
    assert max_levels(off, reference) == 2
    assert psnr(off, reference) == pytest.approx(20 * math.log10(255 / 2))
    assert psnr(reference, reference) == math.inf
    assert ssim(reference, reference) == pytest.approx(1)


def test_ssim_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    reference = sample_picture(60, 70)
    worse = np.clip(reference.astype(int) + np.random.default_rng(1).integers(-40, 41, reference.shape), 0, 255)
    worse = worse.astype(np.uint8)
    # Population covariance over the windows that lie inside the image, as the paper has it.
    _, everywhere = metrics.structural_similarity(
        worse,
        reference,
        data_range=255,
        channel_axis=2,
        gaussian_weights=True,
        use_sample_covariance=False,
        sigma=1.5,
        full=True,
    )
    assert ssim(worse, reference) == pytest.approx(everywhere[5:-5, 5:-5].mean(), abs=1e-6)
    assert ssim(worse, reference) < 0.9


def test_the_peak_is_what_the_call_held() -> None:
    size = 64 << 20
    result, growth = peak_growth(lambda: np.ones(size, np.uint8).sum())
    assert result == size
    if growth is None:
        pytest.skip("this system has no /proc/self/clear_refs")
    assert size * 0.9 < growth < size * 2


def test_ceilings_are_rates_of_this_machine() -> None:
    ceiling = measure_ceiling(rounds=1)
    assert ceiling.matmul_gflops > 0.1
    assert ceiling.copy_gbs > 0.1
    assert ceiling.ridge == pytest.approx(ceiling.matmul_gflops / ceiling.copy_gbs)


def test_traffic_counts_every_value_a_node_reads_or_writes() -> None:
    model = load_model(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()))
    assert model.graph is not None
    found = traffic_bytes(model.graph, model.graph.shapes((1, 3, 8, 10)))
    conv = 3 * 80 + 4 * 80 + 4 * 27 + 4
    assert found == 4 * (conv + 2 * 4 * 80)


def test_work_is_of_the_whole_image() -> None:
    model = load_model(ESPCN(2, features=(8, 4)))
    work = work_of(model, sample_picture(10, 20))
    assert (work.images, work.input_px, work.output_px) == (1, 200, 800)
    # Convolutions of 5, 3 and 3 pixels: 2 FLOPs a weight a pixel, and the pointwise layers.
    multiply_adds = 200 * (25 * 3 * 8 + 9 * 8 * 4 + 9 * 4 * 12)
    assert work.flops is not None
    assert 2 * multiply_adds <= work.flops <= 2.1 * multiply_adds


def test_a_luma_network_works_thrice_on_a_colour_image() -> None:
    work = work_of(load_model(FSRCNN(2, d=4, s=2, m=1)), sample_picture(10, 20))
    single = work_of(load_model(nn.Sequential(nn.Conv2d(1, 1, 1))), sample_picture(10, 20))
    assert single.flops == 3 * 200 * 2
    assert work.output_px == 800


@pytest.mark.thorough
def test_bench_measures_the_default_beside_every_backend() -> None:
    module = ESPCN(2, features=(8, 4)).eval()
    measured = bench(
        module,
        sizes=[(24, 17)],
        backends=["torch_eager", "ncnn"],
        precisions=("fp32", "bf16"),
        rounds=2,
        measure_seconds=1,
    )
    rows = {row.name: row for row in measured.rows}
    assert set(rows) == {DEFAULT, "torch_eager fp32", "torch_eager bf16", "ncnn fp32", "ncnn bf16"}
    assert "serves fp32 only" in (rows.pop("ncnn bf16").refused or "")
    for row in rows.values():
        assert row.timing is not None
        assert row.timing.p20_s <= row.timing.median_s <= row.timing.p80_s
        assert row.output_mps == pytest.approx(4 * row.input_mps)
        assert row.input_mps == pytest.approx(24 * 17 / 1e6 / row.timing.median_s)
        assert None not in (row.gflops, row.matmul_share, row.gbs, row.copy_share)
    assert rows["torch_eager fp32"].psnr_db is None
    assert rows["torch_eager fp32"].max_levels == 0
    assert rows["torch_eager bf16"].max_levels is not None
    # The default is served by one of the backends, and says which.
    assert rows[DEFAULT].backend in ("torch_eager", "ncnn", "openvino", "onnxruntime", "inductor")
    assert json.loads(json.dumps(measured.as_json()))["rows"]


@pytest.mark.thorough
def test_a_latent_model_draws_a_batch() -> None:
    measured = bench("dcgan-digits", backends=["torch_eager"], rounds=1)
    rows = {row.name: row for row in measured.rows}
    assert rows["torch_eager fp32"].size == f"{DRAWN} latents"
    assert rows["torch_eager fp32"].images_per_s


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="there is no backend 'fast'"):
        bench(ESPCN(2, features=(8, 4)), backends=["fast"])
    with pytest.raises(UsageError, match="precision: 'int8' is none"):
        bench(ESPCN(2, features=(8, 4)), precisions=["int8"])


def test_names_are_those_that_the_environment_allows_and_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEFUSE_BACKENDS", "ncnn,torch_eager")
    assert checked_names(None, ["fp32"]) == (("ncnn", "torch_eager"), ("fp32",))
    assert checked_names(["openvino", "openvino"], ["bf16", "bf16"]) == (("openvino",), ("bf16",))
    one_line(tilefuse("bench", "espcn-x2", "--backends", ","), 2, "backends: none is named", "torch_eager")
    one_line(tilefuse("bench", "espcn-x2", "--precision", ""), 2, "precision: none is named", "bf16")


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_a_time_that_is_none(tmp_path: Path, seconds: str) -> None:
    told = ("measure_seconds", "is no time")
    one_line(tilefuse("bench", "espcn-x2", "--measure-seconds", seconds), 2, *told)
    arguments = ("compare", "espcn-x2", tmp_path / "none.png", "-o", tmp_path / "r.html")
    one_line(tilefuse(*arguments, "--measure-seconds", seconds), 2, *told)
    with pytest.raises(UsageError, match="is no time"):
        load("espcn-x2").warm(20, 30, seconds=float(seconds))


@pytest.mark.thorough
def test_the_command_prints_and_writes_its_record(tmp_path: Path) -> None:
    record = tmp_path / "bench.json"
    arguments = (
        "bench",
        "espcn-x2",
        "--size",
        "32x20",
        "--backends",
        "torch_eager",
        "--rounds",
        "1",
        "--measure-seconds",
        "1",
    )
    result = tilefuse(*arguments, "--json", record)
    assert result.exit_code == 0, result.output
    for word in ("32x20", "default runs", "torch_eager fp32", "GFLOP/s", "PSNR", "ceiling fp32"):
        assert word in result.output
    assert json.loads(record.read_text())["model"] == "espcn-x2"
    one_line(tilefuse(*arguments, "--json", record), 2, "already exists", "--overwrite")


def test_a_terminal_of_80_columns_shows_every_figure_whole() -> None:
    row = Row("torch_eager fp32", "torch_eager", "fp32", "1920x1080", windows=15, timing=Timing(1.2346, 1.2, 1.3, 7))
    figures = {"compile_s": 12.34, "images_per_s": 123.45, "input_mps": 67.89, "output_mps": 234.56, "gflops": 3210.9}
    shares = {"gbs": 98.7, "matmul_share": 0.77, "copy_share": 0.66, "peak_bytes": 999 << 20, "psnr_db": 101.5}
    row = replace(row, **figures, **shares, max_levels=254.0)
    refused = Row("ncnn bf16", "ncnn", "bf16", "1920x1080", refused="it serves fp32 only")
    out = io.StringIO()
    print_bench(
        Bench("m", "a machine", 7, (Ceiling("fp32", 80.0, 9.5),), (row, refused)),
        Console(file=out, width=80, force_terminal=True, color_system=None, highlight=False),
    )
    told = out.getvalue()
    for figure in ("1234.6", "1200.0", "1300.0", "123.45", "67.89", "234.56", "12.34", "3210.9", "77%", "98.7", "66%"):
        assert f" {figure} " in told.replace("\n", " ")
    for word in ("999.0 MiB", "101.5 dB", " 254", "runs torch_eager fp32, 15 windows", "ncnn bf16 can't serve: it"):
        assert word in told
    assert all(line in told.splitlines() for line in _LEGEND.splitlines())
    assert "…" not in told


@pytest.mark.parametrize("size", ["12", "0x5", "axb", "99999x5", "12x"])
def test_a_size_that_is_none(size: str) -> None:
    one_line(tilefuse("bench", "espcn-x2", "--size", size), 2, "size:", "WIDTHxHEIGHT")


def test_help_names_every_option() -> None:
    text = CliRunner().invoke(cli.cli, ["bench", "--help"]).output
    for option in ("--size", "--backends", "--precision", "--rounds", "--json"):
        assert option in text


def test_the_growth_on_a_gpu_is_what_torch_took_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of a stand-in."""
    told = {"held": 100, "peak": 100}
    for name, value in {
        "init": lambda: None,
        "empty_cache": lambda: told.update(held=40, peak=100),
        "reset_peak_memory_stats": lambda _: told.update(peak=told["held"]),
        "memory_reserved": lambda _: told["held"],
        "max_memory_reserved": lambda _: told["peak"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert peak_growth(lambda: told.update(peak=90) or 7, "cuda:0") == (7, 50)
    # A library with an allocator of its own took none of torch's.
    assert peak_growth(lambda: 7, "cuda") == (7, None)
