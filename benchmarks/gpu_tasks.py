"""What the GPU check has its processes do: functions of plain values, found by their names, that give plain values."""

from __future__ import annotations

import gc
import math
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache

import torch
import triton
from torch import Tensor

from benchmarks import gpu_runners as runners
from benchmarks.gpu_chains import chain_subjects, ring_absent, ring_subjects
from benchmarks.gpu_clock import Clock, CudaClock, HostClock, measure_ceilings
from benchmarks.gpu_kernels import Subject, check, layers
from benchmarks.gpu_nets import NETS, TINY, Net
from benchmarks.gpu_plain import plain_subjects
from benchmarks.gpu_record import COMPILED, CUDNN, EAGER, ORT, Row
from tilefuse.backends.triton.session import TritonSession
from tilefuse.capture import from_module
from tilefuse.footprint import footprint
from tilefuse.graph import Graph
from tilefuse.tiling import grid


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


# Networks are timed in halves, whose kernels are therefore checked first.
FULL = Scale(
    NETS, (), (), (torch.float16, torch.float32, torch.bfloat16), (65, 87), None, 2 * 2**30, 8192, 0.25
)  # fmt: skip
DRY = Scale(TINY, ("fsrcnn",), ("pggan",), (torch.float16,), (20, 24), (5, 6), 2**16, 32, 0.0)


def scale(dry: bool) -> Scale:
    """Give the scale of a real or of a dry run."""
    return DRY if dry else FULL


def machine(dry: bool) -> dict[str, str]:
    """Name the device and the versions."""
    smi = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "gpu": "dry run on a CPU" if dry else torch.cuda.get_device_name(),
        "driver": "none" if dry else _told(smi),
        "torch": str(torch.__version__),
        "triton": str(triton.__version__),
        "python": platform.python_version(),
        "commit": _told(["git", "rev-parse", "HEAD"]),
        "date": datetime.now(UTC).date().isoformat(),
    }


def names(dry: bool, dtype: int) -> list[str]:
    """List the kernels to check in the type of a number."""
    return [each.name for each in _subjects(dry, dtype)]


def ring_note(dry: bool) -> str | None:
    """Give the reason why the ring kernel is not measured, or None."""
    return ring_absent(torch.float16, _device(dry))


def ceilings(dry: bool) -> dict[str, float]:
    """Measure what the device can do at most."""
    of = scale(dry)
    return asdict(measure_ceilings(_clock(dry), copy_bytes=of.copy_bytes, edge=of.edge, seconds=of.seconds))


def check_kernel(dry: bool, dtype: int, index: int) -> Row:
    """Compare a kernel with fp32 and a tile with the whole; run it once at the size it is timed at."""
    of, device, each = scale(dry), _device(dry), _subjects(dry, dtype)[index]
    found = asdict(check(each, of.check_size, of.dtypes[dtype], device))
    if dtype == 0 and not dry:
        each.run(*each.inputs(*each.size, torch.float16, device))
        torch.cuda.synchronize()
    return found


def time_kernel(dry: bool, index: int) -> Row:
    """Time a kernel at a real size; bytes and operations are what it moves and computes."""
    of, clock, each = scale(dry), _clock(dry), _subjects(dry, 0)[index]
    x, residuals = each.inputs(*(of.kernel_size or each.size), torch.float16, clock.device)
    out = each.run(x, residuals)
    timing = clock.time(clock.captured(lambda: each.run(x, residuals)), of.seconds / 4)
    moved, flops = each.traffic(x, residuals, out)
    return {"kernel": each.name, "shape": list(x.shape), **asdict(timing), "bytes": moved, "flops": flops}


def compile_net(dry: bool, index: int) -> None:
    """Have the kernels of a network compiled; the compiler's cache on disk hands them on."""
    net = scale(dry).nets[index]
    runners.triton_bindings(_graph(dry, index), net.shape, _device(dry))


def tiled_equal(dry: bool, index: int) -> bool:
    """Compare an image run tile by tile, in half precision, with the whole image, bit by bit."""
    net, graph, device = scale(dry).nets[index], _graph(dry, index), _device(dry)
    height, width, tile = net.tiled or (0, 0, 0)
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    cut = grid(height, width, tile, footprint(graph))
    shapes = [(1, 3, *cut.window), (1, 3, height, width)]
    parts, whole = (TritonSession(runners.triton_bindings(graph, shape, device), (shape,)) for shape in shapes)
    (expected,) = whole.run(image)
    return runners.tiles_equal(parts, cut, image, expected)


def measure_net(dry: bool, index: int) -> Row:
    """Check a network against fp32, and time it."""
    recover()
    net, clock = scale(dry).nets[index], _clock(dry)
    x = _input(net)
    wanted = runners.reference(net.module(), x, clock.device)
    own = runners.triton_runner(_graph(dry, index), x, clock)
    psnr = _psnr(own.result(), wanted)
    return {"psnr_db": psnr, **_timed(lambda: own, clock, scale(dry).seconds)}


def measure_baseline(dry: bool, index: int, name: str) -> Row:
    """Time a baseline; without it the row says what is missing."""
    recover()
    net, clock = scale(dry).nets[index], _clock(dry)
    x = _input(net)
    make: dict[str, Callable[[], runners.Runner]] = {
        EAGER: lambda: runners.eager_runner(net.module(), x, clock),
        ORT: lambda: runners.onnx_runner(_graph(dry, index), x, clock),
        CUDNN: lambda: runners.cudnn_runner(_graph(dry, index), x, clock),
        COMPILED: lambda: runners.compiled_runner(net.module(), x, clock),
    }
    try:
        return _timed(make[name], clock, scale(dry).seconds)
    except runners.MissingError as error:
        return {"missing": str(error)}
    finally:
        if name == COMPILED:
            torch.compiler.reset()


def recover() -> None:
    """Give back what a step has left on the device; raises where its context is spoilt."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a capture has been left open")


def _timed(make: Callable[[], runners.Runner], clock: Clock, seconds: float) -> Row:
    runner = make()
    return {"time": asdict(clock.time(runner.call, seconds)), "peak_bytes": runner.peak_bytes}


def _device(dry: bool) -> str:
    return "cpu" if dry else "cuda"


@cache
def _clock(dry: bool) -> Clock:
    return HostClock() if dry else CudaClock()


@cache
def _subjects(dry: bool, dtype: int) -> list[Subject]:
    """Every layer and chain of the zoo, or of some networks, the ring kernel, and every kernel without a product."""
    # Many processes share the cores, and none of them has much to compute on them.
    torch.set_num_threads(1)
    of, device = scale(dry), _device(dry)
    kind = of.dtypes[dtype]
    chains = chain_subjects(kind, device, networks=of.chains)
    return [*layers(kind, device, networks=of.networks), *chains, *ring_subjects(kind, device), *plain_subjects()]


@lru_cache(maxsize=1)
def _graph(dry: bool, index: int) -> Graph:
    """Capture a network; a small image does, as height and width stay open."""
    net = scale(dry).nets[index]
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


def _told(command: list[str]) -> str:
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.strip().splitlines()[0]
