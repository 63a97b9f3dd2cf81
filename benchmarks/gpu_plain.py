"""The kernels without a product, as subjects of the GPU check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

from tilefuse.backends.triton.tables import resize_tables
from tilefuse.kernels.elementwise import elementwise, elementwise_ref
from tilefuse.kernels.image_load import image_load, image_load_ref
from tilefuse.kernels.image_store import image_store, image_store_ref
from tilefuse.kernels.norm import norm, norm_ref
from tilefuse.kernels.pad import pad, pad_ref
from tilefuse.kernels.pixel_norm import pixel_norm, pixel_norm_ref
from tilefuse.kernels.pixel_shuffle import pixel_shuffle, pixel_shuffle_ref
from tilefuse.kernels.pixel_unshuffle import pixel_unshuffle, pixel_unshuffle_ref
from tilefuse.kernels.plain_cases import GATE
from tilefuse.kernels.pool import pool, pool_ref
from tilefuse.kernels.resize import resize, resize_ref
from tilefuse.ops import Resize, ResizeMode

Images = Callable[[Tensor, list[Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class Plain:
    """A kernel without a product; see `Subject` in gpu_kernels."""

    name: str
    channels: int
    run: Images
    reference: Images
    ratio: Fraction | None = Fraction(1)
    margin: int = 2
    operands: int = 0
    pixels: torch.dtype | None = None
    size: tuple[int, int] = (540, 960)

    @property
    def upsample(self) -> tuple[int, ...]:
        """The further operands are as large as the image."""
        return (1,) * self.operands

    def inputs(self, height: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, list[Tensor]]:
        """Draw images of even sizes, as a pixel unshuffle wants."""
        shape = (1, height + height % 2, width + width % 2, self.channels)
        if self.pixels is not None:
            return torch.randint(0, 256, shape, device=device, dtype=torch.uint8), []
        draw = (torch.randn(shape, device=device).to(dtype) for _ in range(self.operands + 1))
        x, *rest = draw
        return x, rest

    def traffic(self, x: Tensor, residuals: list[Tensor], out: Tensor) -> tuple[int, int]:
        """Bytes that have to move; no products."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (x, *residuals, out)), 0


def plain_subjects() -> list[Plain]:
    """Give every kernel without a product, with the attributes the zoo has."""
    return [
        Plain("span gate", 48, lambda x, r: elementwise((x, *r), GATE), lambda x, r: elementwise_ref((x, *r), GATE),
              operands=1),
        Plain("instance norm", 128, lambda x, _: norm(x, 0, *_affine(x)), lambda x, _: norm_ref(x, 0, *_affine(x)),
              ratio=None, size=(270, 480)),
        Plain("group norm", 64, lambda x, _: norm(x, 8, *_affine(x)), lambda x, _: norm_ref(x, 8, *_affine(x)),
              ratio=None),
        Plain("pixel norm", 64, lambda x, _: pixel_norm(x), lambda x, _: pixel_norm_ref(x)),
        *(Plain(f"pad {mode}", 64, lambda x, _, mode=mode: pad(x, (1, 1, 1, 1), mode),
                lambda x, _, mode=mode: pad_ref(x, (1, 1, 1, 1), mode), ratio=None)
          for mode in ("constant", "reflect", "replicate", "circular")),
        Plain("pixel shuffle x4", 48, lambda x, _: pixel_shuffle(x, 4), lambda x, _: pixel_shuffle_ref(x, 4),
              ratio=Fraction(4)),
        Plain("pixel unshuffle x2", 3, lambda x, _: pixel_unshuffle(x, 2), lambda x, _: pixel_unshuffle_ref(x, 2),
              ratio=Fraction(1, 2)),
        *(Plain(f"max pool {k}", 64, lambda x, _, k=k: pool(x, "max", (k, k), (2, 2)),
                lambda x, _, k=k: pool_ref(x.cpu(), "max", (k, k), (2, 2)).to(x.device), ratio=Fraction(1, 2))
          for k in (2, 3)),
        *(_resized(mode, channels) for mode, channels in (("nearest", 64), ("linear", 64), ("cubic", 3))),
        Plain("load uint8", 3, lambda x, _: image_load(x, 1 / 255, torch.float16),
              lambda x, _: image_load_ref(x, 1 / 255, torch.float16), pixels=torch.uint8),
        Plain("store uint8", 3, lambda x, _: image_store(x), lambda x, _: image_store_ref(x)),
    ]  # fmt: skip


def _resized(mode: ResizeMode, channels: int) -> Plain:
    op = Resize(mode, (Fraction(2), Fraction(2)), coordinates="asymmetric" if mode == "nearest" else "half_pixel")

    # Kept, as a session does: a copy from the host can't be captured in a CUDA graph.
    @cache
    def placed(height: int, width: int, device: torch.device) -> list[Tensor]:
        return [table.to(device) for table in resize_tables(op, height, width)]

    def tables(x: Tensor) -> list[Tensor]:
        return placed(x.shape[1], x.shape[2], x.device)

    return Plain(
        f"resize {mode} x2", channels, lambda x, _: resize(x, *tables(x)), lambda x, _: resize_ref(x, *tables(x)),
        ratio=Fraction(2), margin=8,
    )  # fmt: skip


def _affine(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(x.shape[3], device=x.device), torch.zeros(x.shape[3], device=x.device)
