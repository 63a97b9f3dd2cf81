"""tilefuse: trained convolutional image generators at any image size, with tiles that equal the whole image.

>>> import tilefuse
>>> engine = tilefuse.load("espcn-x4")
>>> engine.footprint.halo
4
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from tilefuse.errors import (
    BackendError,
    CapacityError,
    DeviceError,
    ExportError,
    ImageError,
    ModelError,
    TilefuseError,
    UsageError,
)

if TYPE_CHECKING:
    from tilefuse import capture, export
    from tilefuse.api import Engine, Report, load
    from tilefuse.planner import Plan

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CapacityError",
    "DeviceError",
    "Engine",
    "ExportError",
    "ImageError",
    "ModelError",
    "Plan",
    "Report",
    "TilefuseError",
    "UsageError",
    "capture",
    "export",
    "load",
]

# torch takes seconds to import, so what needs it is imported when it is first asked for.
_LAZY = {"Engine": "api", "Report": "api", "load": "api", "Plan": "planner", "capture": "", "export": ""}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'tilefuse' has no attribute {name!r}")
    module = import_module(f"tilefuse.{_LAZY[name] or name}")
    return getattr(module, name) if _LAZY[name] else module
