"""What every room after capture works on: a loaded model, its graph and geometry, and the form it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from tilefuse.errors import ModelError
from tilefuse.footprint import Footprint
from tilefuse.graph import Graph


@dataclass(frozen=True, eq=False)
class Model:
    """A trained generator.

    `graph` is None when an op lies outside the vocabulary; `uncaptured` then says which, and only backends that run the
    original form can serve, untiled: `module`, or `onnx`, a serialised ONNX model with its weights inside. `footprint`
    is None for a network that maps no image to an image; `no_footprint` then says why. `image_channels` are those of
    its input and of its output; `value_range` is what black and white are to it.
    """

    name: str
    sha256: str
    graph: Graph | None = None
    uncaptured: str | None = None
    module: nn.Module | None = None
    onnx: bytes | None = None
    footprint: Footprint | None = None
    no_footprint: str = ""
    image_channels: tuple[int, int] = (0, 0)
    value_range: tuple[float, float] = (0.0, 1.0)
    details: Mapping[str, str] = field(default_factory=dict)

    def geometry(self) -> Footprint:
        """Return the footprint.

        Raises:
            ModelError: the network is no image-to-image network.
        """
        if self.footprint is None:
            raise ModelError(f"{self.name} can't run on an image: {self.no_footprint}")
        return self.footprint
