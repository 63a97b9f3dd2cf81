"""The ahead-of-time gate: what it reads from compiled kernels, what it refuses, and that it knows the whole zoo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from tilefuse.errors import BackendError
from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.dcgan import DCGAN
from tilefuse.export.generators.edsr import EDSR
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.export.generators.pggan import PGGAN
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.export.generators.span import SPAN
from tilefuse.export.generators.srresnet import SRResNet
from tilefuse.kernels.aot import Row, compile_launch, judge
from tilefuse.kernels.chain import Inner, pack_chain, run_chain
from tilefuse.kernels.conv_cases import CASES, conv_cases
from tilefuse.kernels.conv_config import pick_config
from tilefuse.kernels.convolve import plan_launch, run_layer
from tilefuse.kernels.epilogue import Epilogue, Prologue
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.layer import Layer, pack_conv2d, pack_conv_transpose2d
from tilefuse.kernels.registry import launches
from tilefuse.kernels.toolchain import interpreted

pytestmark = pytest.mark.thorough

SOUND = Row("conv2d", "", 128, 0, 100_000, 8, 6, 0, ())
TARGETS = (80, 90, 100)


def compiling(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that compiles instead of interpreting, with a cache of its own."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=900
    )


@pytest.mark.thorough
@pytest.mark.parametrize(("target", "instruction"), [("sm_80", "conv2d 64->64"), ("sm_90", "conv2d_tma 64->64")])
def test_kernels_of_the_zoo_compile_soundly(target, instruction, tmp_path):
    pattern = "^compact .*64->64 3x3 float16$|^mobile depthwise.*float16"
    command = ("-m", "tilefuse.kernels.inspect", "--target", target, "--json", "--matching", pattern)
    done = compiling(tmp_path, *command)
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
def test_no_launch_is_compiled_twice(target):
    keys = [launch.key() for launch in launches(target)]
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
    planned = plan_launch(x, layer, Prologue(), epilogue, out, capability=90)
    last = pack_conv2d(torch.zeros(12, 16, 3, 3, dtype=torch.float16), padding=(1, 1, 1, 1), shuffle=2)
    chain = pack_chain([Inner(pack_conv2d(torch.zeros(16, 3, 3, 3, dtype=torch.float16), padding=(1, 1, 1, 1)))], last)
    run_chain(x[..., :3].contiguous(), chain, epilogue=Epilogue(shuffle=2, **limits))
    assert launched[0].key() == planned.key()
    assert [launch.arguments["CLAMP"] for launch in launched] == [bool(limits)] * 2


@pytest.mark.parametrize("target", TARGETS)
def test_few_outputs_at_many_positions_take_narrow_blocks(target):
    """192 columns of 8 x 8 positions: the addresses of 128 of them spill."""
    case = next(case for case in CASES if case.network == "autoencoder" and case.outputs == 3)
    assert case.launch(torch.float16, target).config.block_n == 64


ZOO = {
    "espcn": lambda: ESPCN(3),
    "compact": lambda: SRVGGNetCompact(upscale=2),
    "rrdb": lambda: RRDBNet(num_block=1),
    "rrdb x2": lambda: RRDBNet(num_block=1, unshuffle=2, num_in_ch=12),
    "span": lambda: SPAN(upscale=2),
    "srresnet": lambda: SRResNet(num_block=1),
    "edsr": lambda: EDSR(num_block=1),
    "edsr wide": lambda: EDSR(num_feat=256, num_block=1, upscale=3),
    "fsrcnn": lambda: FSRCNN(3),
    "dcgan": lambda: DCGAN(),
    "pggan": lambda: PGGAN(),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ZOO)
def test_every_configuration_of_the_zoo_is_compiled(name, dtype):
    """A layer of a published network whose configuration no case has would be shipped uncompiled."""
    with torch.device("meta"):
        net = ZOO[name]()
    for target in TARGETS:
        compiled = configurations(dtype, target)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                config = pick_config(packed(module, dtype), dtype, affine=False, target=target)
                assert config in compiled, f"{module} on sm_{target} runs as {config}"


@cache
def configurations(dtype: torch.dtype, target: int) -> frozenset[object]:
    """Give the configurations of all cases."""
    return frozenset(case.launch(dtype, target).config for case in CASES)


def packed(module: nn.Conv2d | nn.ConvTranspose2d, dtype: torch.dtype) -> Layer:
    """Pack a module's weight as the backend does."""
    weight = module.weight.detach().to(dtype)
    if isinstance(module, nn.ConvTranspose2d):
        return pack_conv_transpose2d(weight, stride=module.stride, padding=module.padding * 2)
    return pack_conv2d(weight, stride=module.stride, groups=module.groups)
