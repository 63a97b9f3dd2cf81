"""What every room after capture works on: a loaded model, its graph, and the form it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from tilefuse.graph import Graph


@dataclass(frozen=True, eq=False)
class Model:
    """A trained generator.

    `graph` is None when an op lies outside the vocabulary; `uncaptured` then says which, and only backends that run
    the original form (`module` or `onnx_path`) can serve, untiled.
    """

    name: str
    sha256: str
    graph: Graph | None = None
    uncaptured: str | None = None
    module: nn.Module | None = None
    onnx_path: Path | None = None
    details: Mapping[str, str] = field(default_factory=dict)
