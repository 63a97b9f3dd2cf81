"""The recipes of the latent generators and of the classifier that measures them."""

from typing import Any

from tilefuse.export.recipes.adversarial import AdversarialRecipe
from tilefuse.export.recipes.classification import ClassificationRecipe
from tilefuse.export.recipes.latent import LatentRecipe
from tilefuse.export.recipes.progressive import ProgressiveRecipe
from tilefuse.export.recipes.variational import VariationalRecipe

UNIT = (0.0, 1.0)
DIGIT_DISCRIMINATOR: dict[str, Any] = {"channels": 1, "size": 28, "features": 24, "stages": 3}

LATENT_RECIPES: dict[str, LatentRecipe] = {
    recipe.name: recipe
    for recipe in (
        ClassificationRecipe(
            "cnn-digits",
            "Classifier",
            "digits",
            UNIT,
            {"channels": 1, "size": 28, "classes": 10, "features": (6, 16), "hidden": (120, 84)},
            steps=1500,
        ),
        AdversarialRecipe(
            "gan-digits",
            "GAN",
            "digits",
            UNIT,
            {"latent": 64, "hidden": (128, 128), "channels": 1, "size": 28},
            steps=8000,
            learning_rate=5e-4,
            average_decay=0.998,
            half_precision=True,
            discriminator={"channels": 1, "size": 28, "hidden": (256, 128)},
            penalty=2.0,
            penalty_interval=4,
        ),
        AdversarialRecipe(
            "dcgan-digits",
            "ProjectedDCGAN",
            "digits",
            hyper_parameters={"latent": 16, "features": 48, "channels": 1, "size": 7},
            steps=3000,
            batch=32,
            half_precision=True,
            discriminator=DIGIT_DISCRIMINATOR,
            penalty=0.3,
            penalty_interval=4,
        ),
        AdversarialRecipe(
            "cgan-digits",
            "CGAN",
            "digits",
            hyper_parameters={
                "latent": 16,
                "classes": 10,
                "embedding": 16,
                "features": 48,
                "channels": 1,
                "size": 7,
            },
            steps=2500,
            batch=32,
            half_precision=True,
            discriminator={**DIGIT_DISCRIMINATOR, "classes": 10},
            penalty=0.3,
            penalty_interval=4,
        ),
        VariationalRecipe(
            "vae-digits",
            "VAE",
            "digits",
            UNIT,
            {"latent": 10, "features": 32, "channels": 1, "size": 7},
            steps=3000,
            learning_rate=2e-3,
            half_precision=True,
            kl_weight=2.5,
        ),
        AdversarialRecipe(
            "dcgan-textures",
            "DCGAN",
            "textures-64",
            hyper_parameters={"latent": 100, "features": 16, "channels": 3, "doublings": 4},
            steps=3000,
            batch=16,
            learning_rate=5e-4,
            half_precision=True,
            discriminator={"channels": 3, "size": 64, "features": 16, "stages": 4, "compares": True},
            penalty=0.5,
            penalty_interval=8,
            betas=(0.0, 0.99),
        ),
        ProgressiveRecipe(
            "pggan-textures",
            "PGGAN",
            "textures-32",
            hyper_parameters={"latent": 64, "widths": (64, 64, 32, 16), "channels": 3},
            steps=3600,
            batch=16,
            learning_rate=2e-3,
            half_precision=True,
            discriminator={"widths": (64, 64, 32, 16)},
            penalty=1.0,
            penalty_interval=8,
            betas=(0.0, 0.99),
            shares=(0.08, 0.12, 0.25, 0.55),
        ),
    )
}
