"""The recipes of restoration and of compression."""

from tilefuse.export.recipes.compression import CompressionRecipe
from tilefuse.export.recipes.dataset import DataMix
from tilefuse.export.recipes.latent import LatentRecipe
from tilefuse.export.recipes.restoration import RestorationRecipe

UNIT = (0.0, 1.0)

PICTURE_RECIPES: dict[str, LatentRecipe] = {
    recipe.name: recipe
    for recipe in (
        RestorationRecipe(
            "restore-denoise",
            "RestorationNet",
            "pictures",
            UNIT,
            {"in_channels": 3, "widths": (16, 32, 64), "dilations": (1, 1)},
            steps=4000,
            batch=8,
            learning_rate=1e-3,
            average_decay=0.998,
            half_precision=True,
        ),
        RestorationRecipe(
            "restore-inpaint",
            "RestorationNet",
            "pictures",
            UNIT,
            {"in_channels": 4, "widths": (16, 32, 48, 64), "dilations": (1, 2, 4)},
            steps=3600,
            batch=4,
            learning_rate=1e-3,
            average_decay=0.998,
            half_precision=True,
            damage="holes",
            pictures=DataMix(32, 360, 0.3),
            patch=96,
        ),
        CompressionRecipe(
            "autoencoder",
            "Autoencoder",
            "pictures",
            UNIT,
            {"widths": (32, 48, 64), "latents": 32},
            steps=2000,
            batch=4,
            learning_rate=1e-3,
            average_decay=0.998,
            half_precision=True,
        ),
    )
}
