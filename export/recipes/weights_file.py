"""The file of trained weights, the same bytes for the same weights."""

import json
import os
from pathlib import Path

from safetensors.torch import save
from torch import nn

from tilefuse.export.recipes.evaluation import Evaluation
from tilefuse.export.recipes.registry import Recipe


def write_weights(
    network: nn.Module, recipe: Recipe, evaluation: Evaluation, output: Path, *, steps: int, seed: int
) -> None:
    """Writes fp32 weights to a safetensors file, with how they were made and measured in its header."""
    scores = {
        image.name: {"model": round(image.model_db, 4), "bicubic": round(image.bicubic_db, 4)}
        for image in evaluation.images
    }
    metadata = {
        "architecture": recipe.architecture,
        "hyper_parameters": json.dumps(dict(recipe.hyper_parameters), sort_keys=True),
        "scale": str(recipe.scale),
        "recipe": recipe.name,
        "data": f"{recipe.data.pictures} dead-leaves pictures of {recipe.data.picture_size} pixels; of scikit-image: "
        + ", ".join(recipe.data.photographs),
        "steps": str(steps),
        "seed": str(seed),
        "psnr": json.dumps(scores),
        "gain_db": f"{evaluation.gain_db:.4f}",
        "licence": "Apache-2.0",
    }
    tensors = {key: value.detach().cpu().float().contiguous() for key, value in network.state_dict().items()}
    partial = output.with_name(output.name + ".partial")
    partial.write_bytes(_sorted_header(save(tensors, metadata=metadata)))
    os.replace(partial, output)


def _sorted_header(data: bytes) -> bytes:
    """Sorts the JSON header of a safetensors file, because the library's order of metadata differs from run to run."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
