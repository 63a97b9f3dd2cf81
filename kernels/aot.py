"""Compile a launch ahead of time, without a driver or a GPU, and read what the compiler made of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilefuse.errors import BackendError
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.toolchain import interpreted, triton

# Shared memory one program may ask for; sm_89 (consumer Ada) has less than sm_80.
SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448}
WARP = 32


@dataclass(frozen=True)
class Row:
    """What the compiler made of one launch.

    Attributes:
        wgmma: matrix instructions: wgmma on sm_90, mma before, tcgen05 after.
        async_copies: loads from global into shared memory that run beside the arithmetic.
        byte_stores: stores of single bytes into global memory.
        faults: what the gate finds wrong; empty for a sound kernel.
    """

    kernel: str
    config: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    wgmma: int
    async_copies: int
    byte_stores: int
    faults: tuple[str, ...]


def inspect_launch(launch: Launch, capability: int) -> Row:
    """Compile a launch for a compute capability (80, 90, 100) and judge the result.

    Raises:
        BackendError: Triton is missing, interprets, or can't compile the kernel.
    """
    compiled = compile_launch(launch, capability)
    registers, spills = _resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    row = Row(
        launch.name,
        str(launch.config),
        registers,
        spills,
        int(compiled.metadata.shared),
        len(re.findall(r"^\s*(?:@\S+ )?(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)", ptx, re.M)),
        len(re.findall(r"\bcp\.async\.(?:c[ag]\.shared|bulk\.tensor)", ptx)),
        len(re.findall(r"\bst\.global(?:\.(?!v[248])\w+)*\.[bsu]8\b", ptx)),
        (),
    )
    early = compiled.asm.get("ttir") or compiled.asm["ttgir"]
    return judge(row, launch, capability, multiplies="tt.dot" in early or "warp_group_dot" in early)


def compile_launch(launch: Launch, capability: int) -> Any:
    """Compile with the specialisation (alignment, ones) that the same arguments have at run time."""
    if triton is None or interpreted():
        state = "not installed" if triton is None else "in its interpreter, which can't compile; unset TRITON_INTERPRET"
        raise BackendError(f"ahead-of-time compilation needs Triton, which is {state}")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError
    from triton.runtime.jit import create_function_from_signature

    kernel, target = launch.kernel, GPUTarget("cuda", capability, WARP)
    backend = make_backend(target)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = binder(**launch.arguments, **launch.options)
    options, signature, constexprs, attrs = kernel._pack_args(
        backend, dict(launch.options), bound, specialization, None
    )
    if kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as ASTSource
    source = ASTSource(kernel, signature, constexprs, attrs)
    try:
        return triton.compile(source, target=target, options=options.__dict__)
    except (CompilationError, OutOfResources, PTXASError, RuntimeError) as error:
        raise BackendError(f"{launch.name} does not compile for sm_{capability} as {launch.config}: {error}") from error


def judge(row: Row, launch: Launch, capability: int, *, multiplies: bool) -> Row:
    """Add the faults of a row. True float32 products have no matrix instruction and are not asked for one.

    Args:
        multiplies: whether the kernel has a matrix product.
    """
    faults = list[str]()
    limit = SHARED_LIMITS[capability]
    if row.spill_bytes:
        faults.append(f"spills {row.spill_bytes} bytes")
    if row.shared_bytes > limit:
        faults.append(f"{row.shared_bytes} bytes of shared memory, over {limit}")
    if multiplies and not launch.exact and not row.wgmma:
        faults.append("a product without matrix instructions")
    if launch.pipelined and not row.async_copies:
        faults.append("a loop without pipelined loads")
    if row.byte_stores:
        faults.append(f"{row.byte_stores} byte-wide stores")
    return replace(row, faults=tuple(faults))


def _resources(cubin: bytes) -> tuple[int, int]:
    """Read registers and bytes of stack (spills) from the code, with the cuobjdump that Triton brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    if found is None:
        raise BackendError(f"cuobjdump reports no resources: {report.strip()[:200]}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local
