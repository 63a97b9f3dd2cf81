"""The networks whose speed on a GPU is claimed, at the sizes it is claimed for; and tiny ones for a dry run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from tilefuse.export.generators.compact import SRVGGNetCompact
from tilefuse.export.generators.dcgan import DCGAN
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.export.generators.span import SPAN
from tilefuse.export.generators.stylenet import TransformerNet

P540, P1080, SMALL = (540, 960), (1080, 1920), (256, 256)


@dataclass(frozen=True)
class Net:
    """A network at one input shape. `tiled` is an image and a tile to compare tiles with the whole at, if it tiles."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tiled: tuple[int, int, int] | None = None

    def module(self) -> nn.Module:
        """Build it with seeded weights, in eval mode."""
        torch.manual_seed(0)
        return self.build().eval()


def _images(name: str, build: Callable[[], nn.Module], size: tuple[int, int], tiled: tuple[int, int, int]) -> Net:
    return Net(f"{name} {size[1]}x{size[0]}", build, (1, 3, *size), tiled)


NETS: tuple[Net, ...] = (
    *(_images("ESPCN x4", lambda: ESPCN(4), size, (150, 133, 48)) for size in (P540, P1080)),
    *(_images("Compact 64x16 x4", SRVGGNetCompact, size, (150, 133, 64)) for size in (P540, P1080)),
    _images("SPAN x2", lambda: SPAN(upscale=2), P1080, (160, 133, 64)),
    *(_images("RRDB 6 blocks x4", lambda: RRDBNet(num_block=6), size, (300, 261, 64)) for size in (SMALL, P540)),
    *(replace(_images("RRDB 23 blocks x4", RRDBNet, size, (0, 0, 0)), tiled=None) for size in (SMALL, P540)),
    Net("DCGAN 64x64 batch 64", DCGAN, (64, 100, 1, 1)),
    Net("Style 1920x1080", TransformerNet, (1, 3, *P1080)),
)

TINY: tuple[Net, ...] = (
    Net("ESPCN tiny", lambda: ESPCN(2, features=(8, 4)), (1, 3, 6, 7), (13, 9, 3)),
    Net("Compact tiny", lambda: SRVGGNetCompact(num_feat=8, num_conv=1, upscale=2), (1, 3, 6, 7), (11, 8, 4)),
    Net("DCGAN tiny", lambda: DCGAN(latent=4, features=2, doublings=1), (2, 4, 1, 1)),
)
