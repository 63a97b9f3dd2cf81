"""Upscale every picture of a folder into another, in order, while the next one is being decoded."""

import sys
from pathlib import Path

from PIL import Image

import tilefuse


def main(source: Path, target: Path) -> None:
    """Write target/<name>.png for each source/*.png and .jpg."""
    engine = tilefuse.load("espcn-x2")
    paths = sorted(path for path in source.iterdir() if path.suffix.lower() in (".png", ".jpg"))
    target.mkdir(exist_ok=True)
    for path, result in zip(paths, engine.stream(Image.open(path) for path in paths), strict=True):
        result.save(target / f"{path.stem}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
