"""What the exported network takes: names, sizes that stay open, and random inputs of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from tilefuse.errors import ExportError
from tilefuse.model import Model

KNOWN = ("image", "mask", "latent", "label")
# Edges to trace and to compare at: small, because a deep network is traced by running it, yet past most kernels.
USUAL_PX, SMALL_PX = 12, 3


@dataclass(frozen=True)
class Slot:
    """One input: `sizes` without the batch, None where height and width are open."""

    name: str
    sizes: tuple[int | None, ...]

    @property
    def is_image(self) -> bool:
        """Tell whether height and width are open."""
        return None in self.sizes


@dataclass(frozen=True)
class Signature:
    """The inputs, the multiple that an image's edges must be of, and the smallest edge."""

    slots: tuple[Slot, ...]
    alignment: int = 1
    minimum_px: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the forward."""
        return tuple(slot.name for slot in self.slots)

    @property
    def takes_images(self) -> bool:
        """Tell whether an input is an image of any size."""
        return any(slot.is_image for slot in self.slots)

    def edge(self, wanted_px: int) -> int:
        """Round an edge up to one the network takes."""
        return ceil(max(self.minimum_px, wanted_px) / self.alignment) * self.alignment

    def sample(self, batch: int, height: int, width: int, *, seed: int) -> tuple[Tensor, ...]:
        """Draw inputs: images and masks uniform in 0..1, latents standard normal, labels one-hot."""
        generator = torch.Generator().manual_seed(seed)
        drawn: list[Tensor] = []
        for slot in self.slots:
            sizes = [batch, *(slot.sizes if not slot.is_image else (slot.sizes[0], height, width))]
            if slot.name == "label":
                labels = torch.randint(slot.sizes[0] or 1, (batch,), generator=generator)
                drawn.append(torch.nn.functional.one_hot(labels, slot.sizes[0] or 1).float())
            elif slot.name == "latent":
                drawn.append(torch.randn(sizes, generator=generator))  # type: ignore[arg-type]
            else:
                uniform = torch.rand(sizes, generator=generator)  # type: ignore[arg-type]
                drawn.append(uniform.round() if slot.name == "mask" else uniform)
        return tuple(drawn)

    def traced(self) -> tuple[Tensor, ...]:
        """Draw the inputs to trace with: a batch of two, and edges that differ, so that no two sizes are one."""
        px = self.edge(USUAL_PX)
        return self.sample(2, px + self.alignment, px + 3 * self.alignment, seed=0)

    def others(self) -> tuple[tuple[Tensor, ...], ...]:
        """Draw inputs of three sizes that are not the traced one, the smallest first."""
        a, px, small = self.alignment, self.edge(USUAL_PX), self.edge(SMALL_PX)
        sizes = [(1, small + a, small), (3, px + 2 * a, px), (1, px + 3 * a, px + 8 * a)]
        if not self.takes_images:
            sizes = [(batch, 1, 1) for batch in (1, 3, 5)]
        return tuple(self.sample(*size, seed=i + 1) for i, size in enumerate(sizes))


def signature_of(model: Model) -> Signature:
    """Read the inputs off a model's graph; an uncaptured one takes one image of any size.

    Raises:
        ExportError: neither graph nor geometry says what the network takes.
    """
    if model.graph is None:
        if model.footprint is None:
            raise ExportError(f"{model.name} can't be exported: {model.uncaptured}")
        return Signature((Slot("image", (model.image_channels[0], None, None)),))
    sizes = [spec.shape[1:] for spec in model.graph.inputs]
    names = _names([spec.name for spec in model.graph.inputs], sizes)
    slots = tuple(Slot(name, size) for name, size in zip(names, sizes, strict=True))
    if model.footprint is None:
        return Signature(slots)
    return Signature(slots, model.footprint.alignment, model.footprint.minimum_px)


def _names(own: Sequence[str], sizes: Sequence[tuple[int | None, ...]]) -> list[str]:
    """Keep the agreed names; call a lone input or the first of its kind by what it is, and leave others their own."""
    names: list[str] = []
    for name, size in zip(own, sizes, strict=True):
        is_image = len(size) == 3 and size[1:] != (1, 1)
        kind = "image" if is_image else "latent"
        names.append(name if name in KNOWN or kind in (*own, *names) else kind)
    return names
