"""The PyTorch side: generator architectures, checkpoints, training recipes, export to ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilefuse.export.onnx import ExportReport, to_onnx

__all__ = ["ExportReport", "to_onnx"]


# torch and onnx take seconds to import, so what needs them is imported when it is first asked for.
def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'tilefuse.export' has no attribute {name!r}")
    from tilefuse.export import onnx

    return getattr(onnx, name)
