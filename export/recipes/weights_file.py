"""The file of a trained upscaler: its weights, how they were made and what they measure."""

import json
from pathlib import Path

from torch import nn

from tilefuse.export.recipes.evaluation import Evaluation
from tilefuse.export.recipes.registry import Recipe
from tilefuse.export.recipes.tensor_file import write_tensors


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
        "ssim_gain": f"{evaluation.ssim_gain:.4f}",
        "licence": "Apache-2.0",
    }
    tensors = {key: value.detach().float() for key, value in network.state_dict().items()}
    write_tensors(output, tensors, metadata)
