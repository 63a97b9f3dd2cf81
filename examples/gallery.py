"""Draw one sheet with a strip for every bundled model: input, output, reference."""

from pathlib import Path

from gallery_rows import PANEL_PX, Row, rows_of
from PIL import Image, ImageDraw

from tilefuse.export.checkpoints import bundled

OUT = Path("out/gallery.png")
LABEL_PX, CAPTION_PX, GAP_PX, FONT_PX = 150, 18, 6, 12


def main() -> None:
    """Write out/gallery.png."""
    rows = []
    for name in bundled():
        made = list(rows_of(name))
        rows += made
        print(f"{name}: {', '.join(caption for row in made for caption in row.panels)}")
    OUT.parent.mkdir(exist_ok=True)
    sheet(rows).save(OUT)
    print(f"{OUT}: {len(rows)} strips")


def sheet(rows: list[Row]) -> Image.Image:
    """Lay rows out under one another, each panel under its caption, the model's name on the left."""
    width, height = PANEL_PX
    step = height + CAPTION_PX + GAP_PX
    columns = max(len(row.panels) for row in rows)
    page = Image.new("RGB", (LABEL_PX + columns * (width + GAP_PX), len(rows) * step + GAP_PX), "white")
    draw = ImageDraw.Draw(page)
    for i, row in enumerate(rows):
        top = GAP_PX + i * step
        draw.text((GAP_PX, top + CAPTION_PX + height // 2), row.name, fill="black", font_size=FONT_PX + 2, anchor="lm")
        for j, (caption, image) in enumerate(row.panels.items()):
            left = LABEL_PX + j * (width + GAP_PX)
            draw.text((left, top), caption, fill="black", font_size=FONT_PX)
            page.paste(image, (left, top + CAPTION_PX))
    return page


if __name__ == "__main__":
    main()
