"""One launch of a kernel as a value: what to run it with, or to compile it for ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tilefuse.kernels.toolchain import Kernel


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid and its arguments by name; on meta tensors it can be compiled but not run.

    Attributes:
        name: of the operation and its configuration, for reports.
        config: what was picked, for reports.
        pipelined: whether its loop has loads that must be asynchronous (rows of at least 16 bytes, more than one step).
        exact: whether its products are true float32, which no matrix instruction computes.
        registers: most of a thread, where the compiler would rather spill a few than take more; 0 lets it choose.
    """

    name: str
    kernel: Kernel
    grid: tuple[int, ...]
    arguments: Mapping[str, object] = field(repr=False)
    warps: int = 4
    stages: int = 1
    config: object = None
    pipelined: bool = False
    exact: bool = False
    registers: int = 0

    def key(self) -> tuple[object, ...]:
        """Give what the compiled code depends on: two launches of one key compile to the same."""
        each = tuple(_specialised(name, value) for name, value in self.arguments.items())
        return id(self.kernel), tuple(self.options.items()), each

    def run(self) -> None:
        """Launch the kernel on the current stream."""
        self.kernel[self.grid](**self.arguments, **self.options)

    @property
    def options(self) -> Mapping[str, int | bool]:
        """Compiler options of the launch."""
        # The default of enable_fp_fusion changes in Triton 3.10; bit-identity needs one answer.
        ceiling = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True, **ceiling}


def _specialised(name: str, value: object) -> object:
    """Reduce an argument to what Triton specialises on; compile-time constants are written in capitals."""
    if name.isupper() or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return "one" if value == 1 else (value % 16 == 0, value >= 2**31)
    if isinstance(value, float):
        return "float"
    if isinstance(value, Tensor):
        return str(value.dtype), value.data_ptr() % 16 == 0
    # A descriptor's type is that of the tensor it describes, which it takes on whole 16 bytes only.
    base, block = getattr(value, "base", None), getattr(value, "block_shape", None)
    return (str(base.dtype), tuple(block)) if isinstance(base, Tensor) and block is not None else type(value)
