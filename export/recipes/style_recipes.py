"""The recipes of the style transfer networks."""

from tilefuse.export.recipes.stylisation import StyleRecipe

SMALL = {"widths": (16, 32, 48), "blocks": 3, "img_range": 20.0}

STYLE_RECIPES: dict[str, StyleRecipe] = {
    f"style-{style}": StyleRecipe(
        f"style-{style}",
        "TransformerNet",
        "pictures",
        hyper_parameters=SMALL,
        value_range=(0.0, 1.0),
        steps=steps,
        batch=2,
        learning_rate=2e-3,
        average_decay=0.99,
        checkpoint_steps=250,
        style=style,
        style_weight=weight,
        patch=96,
    )
    for style, weight, steps in (("mosaic", 40.0, 1000), ("waves", 30.0, 1000))
}
