"""`tilefuse info` and `tilefuse models`: what a model is, and which models are bundled."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Column, Table
from safetensors import safe_open

from tilefuse.backends.registry import BACKENDS, notes
from tilefuse.cost import flops, weight_bytes
from tilefuse.errors import ModelError
from tilefuse.export.checkpoints import bundled
from tilefuse.images.outputs import shown
from tilefuse.machine import format_bytes
from tilefuse.model import Model
from tilefuse.planner import input_shapes
from tilefuse.source import load_model


def describe_model(source: str) -> dict[str, Any]:
    """Collect what is known of a model and of who can run it.

    Raises:
        ModelError: the model can't be loaded.
    """
    model = load_model(source)
    described: dict[str, Any] = {"model": model.name, "sha256": model.sha256, "details": dict(model.details)}
    if model.graph is not None:
        described["parameters"] = sum(tensor.numel() for tensor in model.graph.weights.values())
        described["weight_bytes"] = weight_bytes(model.graph)
        described["ops"] = len(model.graph.nodes)
    else:
        described["uncaptured"] = model.uncaptured
    described["geometry"] = _geometry(model)
    described["backends"] = {
        name: backend.available() or backend.refusal(model, "cpu", "fp32") for name, backend in BACKENDS.items()
    }
    described["notes"] = {name: told for name in BACKENDS if (told := list(notes(name, model)))}
    return described


def _geometry(model: Model) -> dict[str, Any] | str:
    if model.footprint is None:
        return model.no_footprint
    found = model.footprint
    geometry: dict[str, Any] = {
        "scale": str(found.scale),
        "halo_px": found.halo,
        "alignment_px": found.alignment,
        "minimum_px": found.minimum_px,
        "global_ops": list(found.global_ops),
        "channels": list(model.image_channels),
    }
    if model.graph is not None:
        edge = found.y.padded(256, found.minimum_px), found.x.padded(256, found.minimum_px)
        shapes = model.graph.shapes(*input_shapes(model.graph, 1, edge))
        geometry["flops_per_pixel"] = round(flops(model.graph, shapes) / (edge[0] * edge[1]))
    return geometry


def print_model(described: dict[str, Any]) -> None:
    """Print what `describe_model` found."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("model", shown(described["model"]))
    geometry = described["geometry"]
    for key, value in described["details"].items():
        # A checkpoint's own scale and channels are told by the geometry.
        if key not in geometry or isinstance(geometry, str):
            table.add_row(key, value)
    if "parameters" in described:
        size = format_bytes(described["weight_bytes"])
        table.add_row("parameters", f"{described['parameters']:,} ({size}), {described['ops']} ops")
    else:
        table.add_row("runs untiled", described["uncaptured"])
    if isinstance(geometry, str):
        table.add_row("images", geometry)
    else:
        for key, value in geometry.items():
            text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
            table.add_row(key.replace("_", " "), text)
    for name, reason in described["backends"].items():
        table.add_row(f"backend {name}", "can serve" if reason is None else f"can't serve: {reason}")
        for note in described["notes"].get(name, ()):
            table.add_row("", note)
    Console(soft_wrap=True, highlight=False, markup=False, emoji=False).print(table)


def list_models() -> list[dict[str, Any]]:
    """Read the headers of the bundled checkpoints."""
    listed = []
    for name, path in bundled().items():
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                parameters = sum(_elements(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path}: the bundled checkpoint can't be read ({error}); install tilefuse again"
            ) from error
        listed.append(
            {
                "name": name,
                "architecture": metadata.get("architecture", ""),
                "scale": metadata.get("scale", ""),
                "parameters": parameters,
                "bytes": path.stat().st_size,
                "gain_db": float(metadata["gain_db"]) if "gain_db" in metadata else None,
            }
        )
    return listed


def print_models(listed: list[dict[str, Any]]) -> None:
    """Print the bundled models as a table."""
    names = ("name", "architecture", "scale", "parameters", "file", "over bicubic")
    # Without lines it fits a terminal of 80 columns.
    table = Table(*(Column(name, no_wrap=True) for name in names), box=None, pad_edge=False)
    for row in listed:
        gain = "" if row["gain_db"] is None else f"{row['gain_db']:+.2f} dB"
        size = format_bytes(row["bytes"])
        table.add_row(
            row["name"], row["architecture"], row["scale"] and f"x{row['scale']}", f"{row['parameters']:,}", size, gain
        )
    Console().print(table)


def _elements(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
