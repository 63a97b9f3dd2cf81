"""The ring kernel: what it takes, where it is chosen, and that it compiles; its numbers are a GPU's to check."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.test_kernels_inspect import compiling
from tilefuse.errors import BackendError
from tilefuse.kernels import ring_config
from tilefuse.kernels.conv2d_ring import plan_launch, run_ring
from tilefuse.kernels.convolve import plan_launch as plan_any
from tilefuse.kernels.epilogue import Epilogue, Prologue, Residual
from tilefuse.kernels.layer import Layer, pack_conv2d
from tilefuse.kernels.ring_config import RingConfig, chooses_ring, pick_config, ring_missing, takes_ring
from tilefuse.kernels.toolchain import interpreted

HALF = torch.float16
make = partial(torch.empty, device="meta")


def layer(inputs: int = 64, outputs: int = 64, kernel: int = 3, dtype: torch.dtype = HALF, **rest: object) -> Layer:
    weight = make(outputs, inputs, kernel, kernel, dtype=dtype)
    return pack_conv2d(weight, padding=(1, 1, 1, 1), **rest)  # type: ignore[arg-type]


PLAIN = Epilogue(activation="leaky_relu", slope=0.2)


def test_it_takes_wide_same_layers_with_a_plain_epilogue() -> None:
    assert takes_ring(layer(), PLAIN, HALF, HALF)
    assert takes_ring(layer(dtype=torch.bfloat16), PLAIN, torch.bfloat16, torch.bfloat16)
    others = [layer(inputs=32), layer(outputs=48), layer(kernel=5), layer(dtype=torch.float32), layer(stride=(2, 2))]
    assert takes_ring(layer(), replace(PLAIN, low=-math.inf, high=math.inf), HALF, HALF)
    assert not any(takes_ring(each, PLAIN, each.weight.dtype, each.weight.dtype) for each in others)
    assert not takes_ring(layer(), PLAIN, torch.uint8, HALF)
    assert not takes_ring(layer(), PLAIN, HALF, torch.uint8)
    added = Residual(make(1, 8, 8, 64, dtype=HALF))
    for change in ({"residuals": (added,)}, {"activation": "gelu"}, {"low": 0.0}, {"output_scale": 255.0}):
        assert not takes_ring(layer(), replace(PLAIN, **change), HALF, HALF), change  # type: ignore[arg-type]


def test_its_rows_and_weights_fit_shared_memory() -> None:
    config = pick_config(layer())
    assert config == RingConfig(ring=6)
    assert config.shared_bytes(layer()) <= ring_config.SHARED_BYTES < replace(config, ring=7).shared_bytes(layer())


def test_nothing_chooses_it_until_a_gpu_has_proven_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = make(1, 9, 11, 64, dtype=HALF)
    plan = partial(plan_any, x, layer(), Prologue(), PLAIN, x, capability=90)
    assert frozenset() == ring_config.TARGETS
    assert plan().config.path == "rows"
    monkeypatch.setattr(ring_config, "TARGETS", frozenset({90}))
    assert chooses_ring(layer(), PLAIN, HALF, HALF, 90) == (not interpreted())
    assert not chooses_ring(layer(), PLAIN, HALF, HALF, 100)
    monkeypatch.setattr(ring_config, "interpreted", lambda: False)
    assert isinstance(plan().config, RingConfig)
    assert plan_any(x, layer(), Prologue(activation="relu"), PLAIN, x, capability=90).config.path == "pointer"
    assert plan_any(x, layer(), Prologue(), PLAIN, x, capability=80).config.path == "pointer"
    monkeypatch.setattr(ring_config, "find_spec", lambda _: None)
    assert ring_missing(90) == "this Triton has no Gluon for Hopper"
    assert plan().config.path == "rows"


def test_the_grid_covers_the_image_and_not_more() -> None:
    image = make(2, 121, 130, 64, dtype=HALF)
    assert plan_launch(image, layer(), PLAIN, image).grid == (2 * 3, 3)


def test_bad_input_is_named_before_any_launch() -> None:
    x = torch.zeros(1, 5, 6, 64, dtype=HALF)
    real = pack_conv2d(torch.zeros(64, 64, 3, 3, dtype=HALF), padding=(1, 1, 1, 1))
    if interpreted():
        with pytest.raises(BackendError, match="the ring kernel can't run on tensor x: Triton's interpreter has no"):
            run_ring(x, real, epilogue=PLAIN)
    with pytest.raises(BackendError, match="x is of 32 channels"):
        run_ring(x[..., :32], real, epilogue=PLAIN)
    with pytest.raises(BackendError, match=r"layer is 64->64 .* accepted: 3x3 of one group"):
        plan_launch(x, real, Epilogue(activation="gelu"), x)
    wide = torch.zeros(1, 5, 6, 65, dtype=HALF)
    with pytest.raises(BackendError, match=r"x is of steps .* accepted: multiples of 16 bytes"):
        plan_launch(wide[..., :64], real, PLAIN, x)
    assert run_ring(x[:0], real, epilogue=PLAIN).shape == (0, 5, 6, 64)


@pytest.mark.slow
def test_it_compiles_soundly(tmp_path: Path) -> None:
    done = compiling(
        tmp_path, "-m", "tilefuse.kernels.inspect", "--target", "sm_90", "--json", "--matching", "^conv2d_ring"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 10
    for row in rows:
        assert (row["spill_bytes"], row["faults"]) == (0, [])
        # Nine taps of four steps each; the copies of rows and weights are the TMA's.
        assert row["wgmma"] == 36
        assert row["async_copies"] >= 12
        assert 200_000 < row["shared_bytes"] <= 232_448
