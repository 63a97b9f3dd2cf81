"""The ahead-of-time gate: what it reads from compiled kernels, what it refuses, and that it knows the whole zoo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import models
from tilefuse.backends.triton.lowering import lower
from tilefuse.backends.triton.session import bind
from tilefuse.capture import from_module
from tilefuse.errors import BackendError
from tilefuse.export.architectures import ARCHITECTURES
from tilefuse.export.checkpoints import bundled, load_bundled
from tilefuse.kernels import chain, registry
from tilefuse.kernels.aot import Row, compile_launch, judge
from tilefuse.kernels.chain import Inner, pack_chain, run_chain
from tilefuse.kernels.conv_cases import CASES, conv_cases
from tilefuse.kernels.convolve import plan_launch, run_layer
from tilefuse.kernels.epilogue import Epilogue, Prologue
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.layer import pack_conv2d
from tilefuse.kernels.network_cases import PUBLISHED, plan
from tilefuse.kernels.pad import pad
from tilefuse.kernels.plain_cases import plain_cases
from tilefuse.kernels.planning import planning
from tilefuse.kernels.toolchain import interpreted

pytestmark = pytest.mark.thorough

SOUND = Row("conv2d", "", 128, 0, 100_000, 8, 6, 0, ())
TARGETS = (80, 90, 100)


def compiling(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that compiles instead of interpreting, with a cache of its own."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=3600
    )


@pytest.mark.thorough
@pytest.mark.parametrize(("target", "instruction"), [("sm_80", "conv2d 64->64"), ("sm_90", "conv2d_rows 64->64")])
def test_kernels_of_the_zoo_compile_soundly(target, instruction, tmp_path):
    pattern = "^compact .*64->64 3x3 float16$|^mobile depthwise.*float16"
    # The layers alone: planning every network takes half a minute.
    script = (
        "from tilefuse.kernels import inspect, registry; registry.CASES = (registry.conv_cases,); inspect.main()"
    )  # fmt: skip
    done = compiling(tmp_path, "-c", script, "--target", target, "--json", "--matching", pattern)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    products = [row for row in rows if instruction in row["kernel"]]
    assert products
    for row in rows:
        assert row["spill_bytes"] == row["byte_stores"] == 0
        assert 0 < row["registers"] <= 255
        assert row["faults"] == []
    for row in products:
        assert row["wgmma"] > 0
        assert row["async_copies"] > 0
        assert row["shared_bytes"] > 0


@pytest.mark.thorough
def test_the_gate_sees_bytes_stored_alone(tmp_path):
    """Nine bytes a row of a pixel: no whole words."""
    script = """
import torch
from tilefuse.kernels.aot import inspect_launch
from tilefuse.kernels.conv_cases import Case
case = Case("espcn", "conv", 16, 27, shuffle=3, out=torch.uint8)
print(inspect_launch(case.launch(torch.float16, 90), 90).faults)
"""
    done = compiling(tmp_path, "-c", script)
    assert "byte-wide stores" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_the_whole_zoo_compiles_soundly(target, tmp_path):
    done = compiling(tmp_path, "-m", "tilefuse.kernels.inspect", "--target", target, "--jobs", "2")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"shared_bytes": 200_000}, "200000 bytes of shared memory, over 166912"),
        ({"wgmma": 0}, "a product without matrix instructions"),
        ({"async_copies": 0}, "a loop without pipelined loads"),
        ({"byte_stores": 3}, "3 byte-wide stores"),
    ],
)
def test_each_fault_is_named(change, fault):
    launch = next(conv_cases(80))
    launch = replace(launch, pipelined=True, exact=False)
    assert judge(SOUND, launch, 80, multiplies=True).faults == ()
    assert judge(replace(SOUND, **change), launch, 80, multiplies=True).faults == (fault,)


def test_what_a_kernel_does_not_have_is_not_asked_of_it():
    launch = replace(next(conv_cases(90)), pipelined=False, exact=True)
    bare = replace(SOUND, wgmma=0, async_copies=0, shared_bytes=232_448)
    assert judge(bare, launch, 90, multiplies=True).faults == ()
    assert judge(bare, replace(launch, exact=False), 90, multiplies=False).faults == ()


def test_a_process_that_interprets_is_told_that_it_cannot_compile():
    if not interpreted():
        pytest.skip("this process compiles")
    with pytest.raises(BackendError, match="unset TRITON_INTERPRET"):
        compile_launch(next(conv_cases(90)), 90)


@pytest.mark.parametrize("target", TARGETS)
def test_no_launch_is_compiled_twice(target, monkeypatch):
    monkeypatch.setattr(registry, "CASES", (conv_cases, plain_cases, conv_cases))
    keys = [launch.key() for launch in registry.launches.__wrapped__(target)]
    assert len(keys) == len(set(keys)) > 100


@pytest.mark.parametrize("limits", [{}, {"low": 0.0}, {"high": 1.0}], ids=str)
def test_a_run_launches_what_the_gate_compiles(limits, monkeypatch):
    """The operators a session calls take an open limit as an infinite one, and must not compile to a clamp for it."""
    if not interpreted():
        pytest.skip("without a GPU only the interpreter runs kernels")
    launched = list[Launch]()
    monkeypatch.setattr(Launch, "run", lambda launch: launched.append(launch))
    layer = pack_conv2d(torch.zeros(64, 64, 3, 3, dtype=torch.float16), padding=(1, 1, 1, 1))
    x, epilogue = torch.zeros(1, 16, 16, 64, dtype=torch.float16), Epilogue(bias=torch.zeros(64), **limits)
    out = run_layer(x, layer, epilogue=epilogue)
    planned = plan_launch(x, layer, Prologue(), epilogue, out, capability=90, emulated=True)
    last = pack_conv2d(torch.zeros(12, 16, 3, 3, dtype=torch.float16), padding=(1, 1, 1, 1), shuffle=2)
    packed = pack_chain([Inner(pack_conv2d(torch.zeros(16, 3, 3, 3, dtype=torch.float16), padding=(1, 1, 1, 1)))], last)
    run_chain(x[..., :3].contiguous(), packed, epilogue=Epilogue(shuffle=2, **limits))
    assert launched[0].key() == planned.key()
    assert [launch.arguments["CLAMP"] for launch in launched] == [bool(limits)] * 2


@pytest.mark.parametrize("target", TARGETS)
def test_few_outputs_at_many_positions_take_narrow_blocks(target):
    """192 columns of 8 x 8 positions: the addresses of 128 of them spill."""
    case = next(case for case in CASES if case.network == "autoencoder" and case.outputs == 3)
    assert case.launch(torch.float16, target).config.block_n == 64


def test_what_a_session_launches_is_what_the_gate_plans(monkeypatch):
    """With half-precision weights, pixels in the first and last kernels, chains, norms and concats."""
    if not interpreted():
        pytest.skip("without a GPU only the interpreter runs kernels")
    for name, shape in (("span", (1, 3, 9, 8)), ("rrdbnet", (1, 3, 9, 8)), ("espcn", (1, 3, 9, 8))):
        graph = from_module(models.build(name)[0], torch.zeros(shape))
        for pixels in (None, torch.uint8):
            program = lower(graph, [shape], torch.float16, pixels=pixels)
            planned = list(plan(graph, (shape,), torch.float16, pixels, target=90, name=name))
            launched = list[Launch]()
            with monkeypatch.context() as patch:
                patch.setattr(Launch, "run", lambda launch, to=launched: to.append(launch))
                # Blocks of chains are larger in the interpreter.
                patch.setattr(chain, "emulated", lambda _: False)
                bind(program, "cpu").replay()
            assert [launch.name for launch in planned] == [f"{name} {launch.name}" for launch in launched]
            products = [i for i, launch in enumerate(launched) if "conv2d" in launch.name or "chain" in launch.name]
            assert products
            for i in products:
                assert planned[i].key() == launched[i].key(), launched[i]


def test_calls_on_tensors_without_memory_are_planned_in_the_block_alone():
    x, out = torch.empty(1, 4, 5, 3, device="meta"), torch.empty(1, 6, 7, 3, device="meta")
    with pytest.raises(BackendError, match="meta"):
        pad(x, (1, 1, 1, 1), "constant", 0.0, out=out)
    with planning(80) as found:
        pad(x, (1, 1, 1, 1), "constant", 0.0, out=out)
        assert [launch.name for launch in found] == ["pad"]
    with pytest.raises(BackendError, match="meta"):
        pad(x, (1, 1, 1, 1), "constant", 0.0, out=out)
    assert len(found) == 1


def test_an_address_that_is_no_multiple_of_16_is_code_of_its_own():
    whole = torch.empty(1, 4, 5, 16, device="meta", dtype=torch.float16)
    kinds = {pad_plan(whole[..., start : start + 3]).key() for start in (0, 1, 8)}
    assert len(kinds) == 2


def pad_plan(x: Tensor) -> Launch:
    with planning(90) as found:
        pad(x, (1, 1, 1, 1), "constant", 0.0, out=torch.empty(1, 6, 7, 3, device="meta", dtype=x.dtype))
    return found[0]


def test_every_architecture_has_a_network_in_the_gate():
    """One that none stands for would be shipped uncompiled."""
    kinds = {type(load_bundled(name)[0]) for name in bundled()} | {type(build()) for build, _ in PUBLISHED.values()}
    assert {a.module for a in ARCHITECTURES} - kinds == set()
