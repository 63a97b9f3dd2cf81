"""The photographs that come with scikit-image: some to train on, others held out to measure the result."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tilefuse.errors import ModelError

TRAINING = (
    "brick.png",
    "cell.png",
    "clock_motion.png",
    "color.png",
    "grass.png",
    "gravel.png",
    "horse.png",
    "ihc.png",
    "logo.png",
    "moon.png",
    "page.png",
    "retina.jpg",
    "text.png",
)
MEASURED = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")
VALIDATION = ("camera.png", "coins.png", "hubble_deep_field.jpg")
HELD_OUT = frozenset(Path(name).stem for name in (*MEASURED, *VALIDATION, "motorcycle_right.png"))


def training_photograph(name: str) -> NDArray[np.uint8]:
    """Reads one photograph to train on, as uint8 [H, W, 3]; raises ModelError for one that is held out."""
    if Path(name).stem in HELD_OUT:
        raise ModelError(f"{name} measures the trained result and may not be trained on; leave it out of the recipe")
    return _read(name)


def held_out_photograph(name: str) -> NDArray[np.uint8]:
    """Reads one photograph that measures results, as uint8 [H, W, 3]."""
    return _read(name)


def _read(name: str) -> NDArray[np.uint8]:
    # `find_spec` instead of an import: the package is read as a folder of pictures, and importing it costs a second.
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ModelError("training and measuring need scikit-image and its photographs: pip install tilefuse[train]")
    path = Path(spec.origin).parent / "data" / name
    if not path.is_file():
        raise ModelError(f"the installed scikit-image lacks data/{name}; pip install --upgrade tilefuse[train]")
    try:
        with Image.open(path) as image:
            if image.mode == "RGBA":
                flat = Image.new("RGBA", image.size, (255, 255, 255, 255))
                flat.alpha_composite(image)
                return np.asarray(flat.convert("RGB"))
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:  # Pillow raises the latter for a broken PNG
        raise ModelError(
            f"scikit-image's data/{name} can't be read ({error}); pip install --force-reinstall scikit-image"
        ) from error
