"""Upscale a photograph four times, print the plan, and put reduced, upscaled and original side by side."""

from pathlib import Path

import skimage.data
from PIL import Image, ImageDraw

import tilefuse

MODEL = "espcn-x4"
OUT = Path("out")
# A spoon and the edge of a cup: left, top, right, bottom in pixels of the original.
DETAIL = (260, 180, 452, 324)


def main() -> None:
    """Write out/photo-x4.png and out/before-after.png."""
    OUT.mkdir(exist_ok=True)
    photograph = Image.fromarray(skimage.data.coffee())
    source, result = OUT / "photo.png", OUT / "photo-x4.png"
    photograph.save(source)
    engine = tilefuse.load(MODEL)
    report = engine.run_file(source, result, overwrite=True, on_plan=print)
    print(f"{result}: {report.plan.output_width}x{report.plan.output_height} in {report.seconds:.2f} s")

    # Reduced by four and brought back, the result has an original to be held against.
    small = photograph.resize((photograph.width // 4, photograph.height // 4), Image.Resampling.BICUBIC)
    panels = {
        "bicubic x4": small.resize(photograph.size, Image.Resampling.BICUBIC),
        f"tilefuse {MODEL}": engine(small),
        "original": photograph,
    }
    pair = OUT / "before-after.png"
    side_by_side({label: image.crop(DETAIL) for label, image in panels.items()}).save(pair)
    print(f"{pair}: a detail reduced by 4 and brought back, beside the original")


def side_by_side(panels: dict[str, Image.Image], zoom: int = 2, label_px: int = 22) -> Image.Image:
    """Lay panels of one size out in a row, enlarged without smoothing, each under its label."""
    width, height = (edge * zoom for edge in next(iter(panels.values())).size)
    sheet = Image.new("RGB", (len(panels) * (width + 4) - 4, height + label_px), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, image) in enumerate(panels.items()):
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (i * (width + 4), label_px))
        draw.text((i * (width + 4) + 4, 4), label, fill="black", font_size=14)
    return sheet


if __name__ == "__main__":
    main()
