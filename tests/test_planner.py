"""Plans: what fits, what is refused, and why."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from tilefuse.cost import weight_bytes
from tilefuse.errors import CapacityError, ImageError
from tilefuse.machine import parse_bytes
from tilefuse.model import Model
from tilefuse.planner import Plan, Request, Serving, Timed, plan
from tilefuse.source import load_model

SERVING = Serving("torch_eager", "cpu", "fp32", ("torch_eager: as asked",))
PLENTY = 2**40


class Gated(nn.Module):
    """A local layer scaled by an average over the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * x.mean((2, 3), keepdim=True)


@pytest.fixture(scope="module")
def local() -> Model:
    torch.manual_seed(0)
    return load_model(
        nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))
    )


@pytest.fixture(scope="module")
def gated() -> Model:
    return load_model(Gated())


def make(model: Model, height: int, width: int, request: Request, image_bytes: int = 0) -> Plan:
    return plan(model, (1, height, width), image_bytes, request, SERVING)[0]


def test_a_small_image_is_one_window(local: Model) -> None:
    made = make(local, 40, 60, Request(memory=PLENTY))
    assert (made.schedule, made.windows, made.window, made.halo_px, made.exact) == ("whole", 1, (40, 60), 3, True)
    assert (made.output_height, made.output_width, made.scale) == (80, 120, 2)


def test_less_memory_means_smaller_windows_and_never_more_than_allowed(local: Model) -> None:
    areas = []
    for memory in (2**28, 2**25, 2**23, 2**21):
        made = make(local, 2000, 3000, Request(memory=memory))
        assert made.peak_bytes <= memory
        areas.append(made.window[0] * made.window[1])
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] < areas[0]


def test_the_numbers_are_in_the_refusal(local: Model) -> None:
    with pytest.raises(CapacityError, match=r"needs about .*KiB and 10\.0 KiB is allowed.*Allow at least"):
        make(local, 500, 500, Request(memory=10 * 1024))
    with pytest.raises(CapacityError, match=r"one window needs about .*leave the tile to the planner"):
        make(local, 2000, 2000, Request(tile=0, memory=2**22))


@pytest.mark.parametrize("asked", [Request(memory=1), Request(memory=1, tile=0), Request(memory=1, tile=64)])
@pytest.mark.parametrize("edge", [100, 901])
def test_the_least_memory_that_is_told_suffices(local: Model, asked: Request, edge: int) -> None:
    with pytest.raises(CapacityError) as refusal:
        make(local, edge, edge, asked, image_bytes=12345)
    told = re.search(r"Allow at least ([\d.]+ \w+)", str(refusal.value))
    assert told
    enough = parse_bytes(told[1])
    assert make(local, edge, edge, replace(asked, memory=enough), 12345).peak_bytes <= enough
    with pytest.raises(CapacityError):
        make(local, edge, edge, replace(asked, memory=int(enough * 0.9)), 12345)


def test_what_was_measured_decides(local: Model) -> None:
    timed = (Timed(64, 70 * 70, 0.002), Timed(128, 134 * 134, 0.004), Timed(0, 500 * 600, 0.5))
    serving = replace(SERVING, timed=timed)
    made = plan(local, (1, 500, 600), 0, Request(memory=PLENTY), serving)[0]
    assert (made.tile, made.seconds) == (128, pytest.approx(0.004 * made.windows))
    assert any("least measured time" in why for why in made.why)
    # Where only another window fits, that is taken, measured or not.
    small = plan(local, (1, 500, 600), 0, Request(memory=2**20), serving)[0]
    assert small.peak_bytes <= 2**20
    assert plan(local, (1, 500, 600), 0, Request(memory=PLENTY, tile=32), serving)[0].tile == 32
    together = plan(local, (1, 500, 600), 0, Request(memory=PLENTY), replace(serving, workers=2))[0]
    assert together.workers == 2
    assert together.peak_bytes > made.peak_bytes


def test_the_asked_tile_is_taken(local: Model) -> None:
    made = make(local, 100, 100, Request(tile=32, memory=PLENTY))
    assert (made.tile, made.window, made.windows) == (32, (38, 38), 9)
    assert "tile 32: as asked" in made.why
    assert make(local, 100, 100, Request(tile=0, memory=PLENTY)).windows == 1
    assert make(local, 100, 100, Request(memory=PLENTY, windows_only=True)).windows > 1


def test_global_ops_refuse_tiling_by_name(gated: Model) -> None:
    assert make(gated, 64, 64, Request(memory=PLENTY)).schedule == "whole"
    with pytest.raises(CapacityError, match="tiling is refused: mean over space"):
        make(gated, 64, 64, Request(tile=16, memory=PLENTY))
    with pytest.raises(CapacityError, match=r"as one window needs .*mean over space.*halo in pixels"):
        make(gated, 640, 640, Request(memory=2**20))


def test_a_numeric_halo_allows_tiling_and_says_approximate(gated: Model, local: Model) -> None:
    assert not make(gated, 64, 64, Request(tile=16, halo_px=8, memory=PLENTY)).exact
    assert not make(local, 64, 64, Request(tile=16, halo_px=2, memory=PLENTY)).exact
    assert make(local, 64, 64, Request(tile=16, halo_px=3, memory=PLENTY)).exact
    assert "approximate" in str(make(gated, 64, 64, Request(tile=16, halo_px=8, memory=PLENTY)))


def test_images_count_against_the_budget(local: Model) -> None:
    with pytest.raises(CapacityError):
        make(local, 64, 64, Request(memory=2**24), image_bytes=2**24)


def test_images_in_one_call_hold_activations_of_their_own(local: Model) -> None:
    """A network of one channel gets the colours of a picture as a batch of three; streamed, they take turns."""
    one, three, turns = (
        plan(local, (images, 300, 300), 0, Request(tile=64, memory=PLENTY), SERVING, one_by_one=by_one)[0].peak_bytes
        for images, by_one in ((1, False), (3, False), (3, True))
    )
    weights = weight_bytes(local.graph)
    assert three - weights == pytest.approx(3 * (one - weights), rel=1e-6)
    assert turns == one


def test_an_image_smaller_than_the_cut_is_refused() -> None:
    cropping = load_model(nn.Sequential(nn.Conv2d(3, 3, 5), nn.Conv2d(3, 3, 5)))
    assert make(cropping, 9, 9, Request(memory=PLENTY)).output_height == 1
    with pytest.raises(ImageError, match="smaller than what Sequential cuts off"):
        make(cropping, 8, 40, Request(memory=PLENTY))


def test_the_plan_explains_itself(local: Model) -> None:
    text = str(make(local, 1080, 1920, Request(memory=2**30)))
    for word in (
        "1920x1080 -> 3840x2160 (x2)",
        "torch_eager on cpu, fp32",
        "halo 3 px",
        "exact",
        "GFLOP",
        "allowed",
        "why",
    ):
        assert word in text


def test_what_a_backend_was_not_measured_to_hold_is_assumed_of_it(local: Model) -> None:
    """ncnn holds about seven bytes for each byte of live activations, the others about two."""
    request = Request(tile=256, memory=PLENTY)

    def peak(backend: str, measured: float | None = None) -> int:
        serving = replace(SERVING, backend=backend, measured_factor=measured)
        return plan(local, (1, 2000, 3000), 0, request, serving)[0].peak_bytes

    weights = peak("torch_eager", 0.0)
    live = peak("torch_eager", 1.0) - weights
    assert live > 1 << 20
    assert peak("torch_eager") == pytest.approx(weights + 2 * live, abs=1)
    assert peak("ncnn") == pytest.approx(weights + 7 * live, abs=1)
    assert peak("ncnn", 3.0) == pytest.approx(weights + 3 * live, abs=1)


def test_callers_of_one_arena_share_it_and_add_their_pixels(local: Model) -> None:
    """Two workers of the Triton backend hold one arena; the lanes are there for one worker as well."""
    request = Request(tile=128, memory=1 << 40)

    def peak(backend: str, workers: int, batch: int = 1) -> int:
        serving = Serving(backend, "cuda", "fp16", (), workers=workers, batch=batch)
        return plan(local, (1, 1000, 1000), 0, request, serving)[0].peak_bytes

    assert peak("triton_fused", 2) == peak("triton_fused", 1)
    assert peak("onnxruntime", 2) > 1.9 * peak("onnxruntime", 1)
    made, cut = plan(local, (1, 1000, 1000), 0, request, Serving("triton_fused", "cuda", "fp16", (), workers=2))
    assert made.workers == 2
    height, width = cut.window
    taken, given = local.image_channels
    lane = 2 * height * width * (taken + given * int(local.geometry().scale) ** 2)
    assert peak("triton_fused", 1) == peak("torch_eager", 1) + 2 * lane
    assert peak("triton_fused", 2, batch=3) > 2.9 * (peak("torch_eager", 1) - weight_bytes(local.graph)) + 6 * lane


def test_the_processors_cache_is_none_of_a_gpus(local: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilefuse.planner.cache_bytes", lambda: 1 << 26)
    monkeypatch.setattr("tilefuse.planner.CACHE_MISS_FACTOR", 2.0)
    tiles = [
        plan(local, (1, 2000, 2000), 0, Request(memory=1 << 40), Serving("torch_eager", device, "fp32", ()))[0].tile
        for device in ("cuda", "cpu")
    ]
    assert tiles[0] == 0
    assert tiles[1] > 0
