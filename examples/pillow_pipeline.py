"""Upscale every picture of a folder into another, in order, while the next one is being decoded."""

import sys
from pathlib import Path

from PIL import Image, ImageOps

import tilefuse


def main(source: Path, target: Path) -> None:
    """Write target/<name>.png for each source/*.png, .jpg and .jpeg."""
    engine = tilefuse.load("espcn-x2")
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    target.mkdir(exist_ok=True)
    upright = (ImageOps.exif_transpose(Image.open(path)) for path in paths)
    for path, result in zip(paths, engine.stream(upright), strict=True):
        result.save(target / f"{path.stem}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
