"""`tilefuse doctor`: what this machine has, what can serve, and what to install."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.markup import escape

from tilefuse import __version__
from tilefuse.backends.registry import BACKENDS
from tilefuse.candidates import BACKENDS_VARIABLE
from tilefuse.images.outputs import shown
from tilefuse.machine import available_memory, cache_bytes, cpu_name, cpu_threads, format_bytes
from tilefuse.options import CACHE_VARIABLE, cache_folder

LIBRARIES = (
    *(
        "torch",
        "numpy",
        "pillow",
        "safetensors",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "onnxruntime-gpu",
        "openvino",
        "ncnn",
        "triton",
    ),
    *("pyvips", "tifffile", "imagecodecs", "isal", "zarr", "scikit-image", "scikit-learn", "spandrel"),
)


def examine() -> dict[str, Any]:
    """Collect the state of this machine; `serving` names the backends that can run."""
    import torch

    folder = cache_folder(None)
    versions = {name: _version(name) for name in LIBRARIES}
    reasons = {name: backend.available() for name, backend in BACKENDS.items()}
    warnings = []
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "uninstall both, then install one (tilefuse[cpu] or tilefuse[gpu])"
        )
    if torch.cuda.is_available() and not versions["triton"]:
        warnings.append("a CUDA device is there but triton is not: install tilefuse[gpu]")
    return {
        "tilefuse": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "threads": cpu_threads(),
        "memory_available_bytes": available_memory(),
        "cache_bytes": cache_bytes(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "libraries": versions,
        "backends": reasons,
        "restricted_to": os.environ.get(BACKENDS_VARIABLE) or None,
        "choices": {"folder": str(folder), "recorded": len(list(folder.glob("*.json")))},
        "serving": [name for name, reason in reasons.items() if reason is None],
        "warnings": warnings,
    }


def print_findings(findings: dict[str, Any]) -> None:
    """Print what `examine` found."""
    out = Console(soft_wrap=True, highlight=False)
    out.print(f"tilefuse {findings['tilefuse']}, Python {findings['python']}, {findings['system']}")
    memory, cache = format_bytes(findings["memory_available_bytes"]), format_bytes(findings["cache_bytes"])
    out.print(f"{findings['cpu']}: {findings['threads']} threads, {memory} free, {cache} last-level cache")
    out.print(f"CUDA devices: {', '.join(findings['cuda']) or 'none'}")
    there = {name: found for name, found in findings["libraries"].items() if found}
    out.print("libraries: " + ", ".join(f"{name} {found}" for name, found in there.items()))
    out.print("not installed: " + (", ".join(n for n in findings["libraries"] if n not in there) or "none"))
    for name, reason in findings["backends"].items():
        mark = "[green]can serve[/]" if reason is None else f"[yellow]can't serve[/]: {escape(reason)}"
        out.print(f"backend {name:12} {mark}")
    if findings["restricted_to"]:
        out.print(f"restricted to {escape(shown(findings['restricted_to']))} by {BACKENDS_VARIABLE}")
    choices = findings["choices"]
    out.print(
        f"{choices['recorded']} choices recorded in {escape(shown(choices['folder']))}; {CACHE_VARIABLE} moves it"
    )
    for warning in findings["warnings"]:
        out.print(f"[red]warning[/] {escape(warning)}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
