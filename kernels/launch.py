"""One launch of a kernel as a value: what to run it with, or to compile it for ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tilefuse.kernels.toolchain import Kernel


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid and its arguments by name; on meta tensors it can be compiled but not run.

    Attributes:
        name: of the operation and its configuration, for reports.
        config: what was picked, for reports.
        pipelined: whether its loop has loads that must be asynchronous (rows of at least 16 bytes, more than one step).
        exact: whether its products are true float32, which no matrix instruction computes.
        unaligned: whether its bytes can't be stored as words, because rows of the image don't begin at whole ones.
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
    unaligned: bool = False

    def run(self) -> None:
        """Launch the kernel on the current stream."""
        # The default of enable_fp_fusion changes in Triton 3.10; bit-identity needs one answer.
        self.kernel[self.grid](**self.arguments, num_warps=self.warps, num_stages=self.stages, enable_fp_fusion=True)
