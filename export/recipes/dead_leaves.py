"""Dead-leaves pictures: overlapping shapes with power-law sizes, the training images that need no photographs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLE = 2
SHORTEST_WAVE_PX = 2.5
SMALL_RADIUS = 5.0  # in finished pixels; smaller shapes are flat, because a texture in them could not be seen


@dataclass(frozen=True)
class Look:
    """The random character of one picture, drawn once a picture so that pictures differ more than shapes do."""

    contrast: float
    chroma: float
    shapes: int
    radius_exponent: float
    radius_limits: tuple[float, float]
    blur: float
    noise: float


def dead_leaves(
    seed: int | list[int], size: int = 384, *, shortest_wave_px: float = SHORTEST_WAVE_PX
) -> NDArray[np.uint8]:
    """Renders one picture, uint8 [size, size, 3], the same for the same seed.

    Shapes cover each other in random order, their radii following a power law, so that the picture is scale invariant
    as photographs are; each carries a flat colour, a gradient, a grating or fractal noise. Edges are anti-aliased by
    rendering larger and averaging. No grating is finer than `shortest_wave_px`: a network trained on gratings that its
    input can't carry invents stripes.

    Source: Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001; Achddou, Gousseau
    and Ladjal, "Fully synthetic training for image restoration tasks", CVIU 2023.
    """
    rng = np.random.default_rng(seed)
    look = _draw_look(rng)
    edge = size * SUPERSAMPLE
    sheets = [_sheet(rng, edge, look, shortest_wave_px) for _ in range(7)]
    canvas = sheets[0].copy()
    draw = ImageDraw.Draw(canvas)
    smallest, largest = look.radius_limits
    power = 1.0 - look.radius_exponent
    radii = (smallest**power + rng.random(look.shapes) * (largest**power - smallest**power)) ** (1.0 / power)
    for radius in radii:
        outline = _outline(rng, radius * SUPERSAMPLE)
        centre = rng.uniform(0, edge, 2)
        if radius < SMALL_RADIUS or rng.random() < 0.35:
            draw.polygon([tuple(point) for point in outline + centre], fill=_colour(rng, look))
        else:
            _paste(canvas, sheets[rng.integers(len(sheets))], outline, centre, rng)
    if look.blur > 0:
        canvas = canvas.filter(ImageFilter.GaussianBlur(look.blur * SUPERSAMPLE))
    picture = np.asarray(canvas.reduce(SUPERSAMPLE), dtype=np.float32)
    picture = picture + rng.standard_normal(picture.shape[:2], dtype=np.float32)[..., None] * look.noise
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _draw_look(rng: np.random.Generator) -> Look:
    return Look(
        contrast=float(rng.uniform(0.5, 1.0)),
        chroma=float(rng.choice([0.0, 12.0, 30.0, 60.0], p=[0.1, 0.3, 0.4, 0.2])),
        shapes=int(np.exp(rng.uniform(np.log(150), np.log(4000)))),
        radius_exponent=float(rng.uniform(2.0, 3.0)),
        radius_limits=(float(rng.uniform(0.7, 2.0)), float(rng.uniform(50, 150))),
        blur=float(rng.choice([0.0, rng.uniform(0.3, 1.6)], p=[0.35, 0.65])),
        noise=float(rng.choice([0.0, rng.uniform(0.5, 6.0)], p=[0.3, 0.7])),
    )


def _colour(rng: np.random.Generator, look: Look) -> tuple[int, int, int]:
    luma = 127.5 + look.contrast * rng.uniform(-127.5, 127.5)
    red, green, blue = np.clip(luma + rng.normal(0.0, max(look.chroma, 1e-9), 3), 0, 255).astype(int)
    return int(red), int(green), int(blue)


def _outline(rng: np.random.Generator, radius: float) -> NDArray[np.float64]:
    """Draws the corners [points, 2] of an ellipse, a polygon, a bar or a blob about the origin."""
    kind = rng.choice(4, p=[0.35, 0.3, 0.2, 0.15])
    if kind == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 7)))
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind == 2:
        ring = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)
    else:
        angles = np.linspace(0, 2 * np.pi, int(np.clip(radius * 1.5, 10, 48)), endpoint=False)
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        if kind == 3:
            ring *= 1 + 0.35 * np.sin(rng.integers(2, 6) * angles + rng.uniform(0, 6.28))[:, None]
    # A bar is long and thin: hair, wires, rails and letters are.
    flat = rng.uniform(0.04, 0.4) if kind == 2 else rng.uniform(0.35, 1.0)
    ring = ring * [radius / np.sqrt(flat), radius * np.sqrt(flat)]
    turn = rng.uniform(0, 2 * np.pi)
    return np.asarray(ring @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]))


def _paste(
    canvas: Image.Image,
    sheet: Image.Image,
    outline: NDArray[np.float64],
    centre: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    low = np.floor(outline.min(axis=0)).astype(int)
    extent = np.ceil(outline.max(axis=0)).astype(int) - low + 1
    mask = Image.new("L", (int(extent[0]), int(extent[1])))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in outline - low], fill=255)
    if rng.random() < 0.15:
        mask = mask.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 3.0)) * SUPERSAMPLE))
    room = np.maximum(np.array(sheet.size) - extent, 0)
    left, top = (int(value) for value in rng.integers(0, room + 1))
    patch = sheet.crop((left, top, left + int(extent[0]), top + int(extent[1])))
    corner = np.round(centre).astype(int) + low
    canvas.paste(patch, (int(corner[0]), int(corner[1])), mask)


def _sheet(rng: np.random.Generator, edge: int, look: Look, shortest_wave_px: float) -> Image.Image:
    """Draws a textured sheet [edge, edge] from which shapes are cut: two colours mixed by a pattern."""
    kind = rng.choice(4, p=[0.25, 0.25, 0.3, 0.2])
    turn = rng.uniform(0, 2 * np.pi)
    ramp = np.arange(edge, dtype=np.float32) / edge
    across = np.float32(np.cos(turn)) * ramp[None, :] + np.float32(np.sin(turn)) * ramp[:, None]
    mix: NDArray[np.floating[Any]]
    if kind == 0:
        mix = 0.5 + 0.5 * across
    elif kind == 1:
        waves = edge / SUPERSAMPLE / np.exp(rng.uniform(np.log(shortest_wave_px), np.log(24.0)))
        bend = 0.06 * _fractal(rng, edge, 1.0, 1.0)
        wave = np.sin(np.float32(2 * np.pi * waves) * (across + bend * np.float32(rng.uniform(0, 1))))
        mix = 0.5 + 0.5 * np.tanh(wave * np.float32(rng.uniform(0.5, 4.0)))
    else:
        stretch = float(np.exp(rng.uniform(np.log(3), np.log(12)))) if kind == 3 else 1.0
        mix = 0.5 + 0.35 * _fractal(rng, edge, float(rng.uniform(0.7, 1.4)), stretch)
    first = np.array(_colour(rng, look), dtype=np.float32)
    second = np.array(_colour(rng, look), dtype=np.float32)
    if kind >= 2:
        second = first + (second - first) * np.float32(rng.uniform(0.2, 0.9))
    shade = first + (second - first) * np.clip(mix, 0, 1)[..., None]
    return Image.fromarray(np.clip(shade, 0, 255).astype(np.uint8))


def _fractal(rng: np.random.Generator, edge: int, slope: float, stretch: float) -> NDArray[np.float32]:
    """Sums octaves of noise to [edge, edge] of unit deviation.

    The amplitude falls by 2**-slope an octave; `stretch` is how much longer than wide its grain is.
    """
    wide = int(edge * 1.5)
    total = np.zeros((edge, edge), dtype=np.float32)
    cells, amplitude = 3, 1.0
    angle = float(rng.uniform(0, 360))
    while cells <= edge // SUPERSAMPLE:
        grid = rng.standard_normal((max(int(cells / stretch), 2), cells), dtype=np.float32) * np.float32(amplitude)
        if stretch == 1.0:
            total += np.asarray(Image.fromarray(grid).resize((edge, edge), Image.Resampling.BICUBIC))
        else:
            layer = Image.fromarray(grid).resize((wide, wide), Image.Resampling.BICUBIC)
            layer = layer.rotate(angle, Image.Resampling.BILINEAR)
            inset = (wide - edge) // 2
            total += np.asarray(layer)[inset : inset + edge, inset : inset + edge]
        cells, amplitude = cells * 2, amplitude * 2.0**-slope
    return total / np.float32(total.std() + 1e-6)
