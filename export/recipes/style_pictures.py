"""Pictures whose style is learnt, drawn from a seed: a mosaic of tesserae, and waves in ink and colour."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TESSERA_PX = 13.0
GROUT_PX = 1.7
WAVE_PX = 11.0
MOSAIC_COLOURS = ((196, 78, 44), (232, 176, 58), (28, 116, 124), (24, 44, 96), (244, 232, 204), (120, 30, 42))
WAVE_COLOURS = ((14, 42, 92), (34, 94, 158), (96, 164, 204), (242, 240, 224), (226, 186, 112), (20, 60, 120))
INK = (10, 16, 34)
FOAM = (250, 248, 236)
GROUT = (42, 36, 34)


def mosaic(seed: int, edge: int) -> NDArray[np.uint8]:
    """Draws [edge, edge, 3]: Voronoi cells of a jittered grid with grout between them, in bands of a few colours."""
    rng = np.random.default_rng([seed, 11])
    cells = int(np.ceil(edge / TESSERA_PX)) + 2
    row, column = np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij")
    jitter = rng.uniform(-0.28, 0.28, (2, cells, cells))
    # Every other row is shifted by half a tessera, as stones are laid.
    centres = np.stack([row - 0.5 + jitter[0], column - 0.5 + 0.5 * (row % 2) + jitter[1]], -1) * TESSERA_PX
    band = np.floor(_smooth(rng, cells, 5) * 2.6 + rng.normal(0, 0.3, (cells, cells))).astype(int)
    shade = rng.uniform(0.8, 1.15, (cells, cells, 1))
    colours = np.array(MOSAIC_COLOURS, dtype=np.float64)[band % len(MOSAIC_COLOURS)] * shade
    nearest, second, index = _two_nearest(centres.reshape(-1, 2), edge)
    picture = colours.reshape(-1, 3)[index] * (1.06 - 0.016 * nearest[..., None])
    share = np.clip((second - nearest) / GROUT_PX - 0.4, 0.0, 1.0)[..., None]
    return _bytes(share * picture + (1 - share) * np.array(GROUT))


def waves(seed: int, edge: int) -> NDArray[np.uint8]:
    """Draws [edge, edge, 3]: bands of colour with inked borders, that swell and curl."""
    rng = np.random.default_rng([seed, 23])
    y, x = np.meshgrid(np.arange(edge, dtype=np.float64), np.arange(edge, dtype=np.float64), indexing="ij")
    swell = 16.0 * np.sin(x / 21.0 + 2.5 * _smooth(rng, edge, 4)) + 24.0 * _smooth(rng, edge, 5)
    height = (y + swell) / WAVE_PX
    band = np.floor(height).astype(int)
    colours = np.array(WAVE_COLOURS, dtype=np.float64)
    order = rng.integers(0, len(colours), band.max() - band.min() + 1)
    # Neighbours that are alike would run together.
    for place in range(1, len(order)):
        if order[place] == order[place - 1]:
            order[place] = (order[place] + 1 + rng.integers(0, len(colours) - 1)) % len(colours)
    picture = colours[order[band - band.min()]]
    within = height - band
    slope = np.hypot(*np.gradient(height))
    foam = np.clip(1.3 - np.abs(within - 0.35) / slope, 0.0, 1.0)[..., None]
    picture = foam * np.array(FOAM) + (1 - foam) * picture
    ink = np.clip(1.6 - np.minimum(within, 1 - within) / slope, 0.0, 1.0)[..., None]
    return _bytes(ink * np.array(INK) + (1 - ink) * picture)


STYLES: Mapping[str, Callable[[int, int], NDArray[np.uint8]]] = {"mosaic": mosaic, "waves": waves}


def _smooth(rng: np.random.Generator, edge: int, cells: int) -> NDArray[np.float64]:
    """Gives smooth noise [edge, edge] of unit deviation."""
    grid = rng.standard_normal((cells, cells)).astype(np.float32)
    noise = np.asarray(Image.fromarray(grid).resize((edge, edge), Image.Resampling.BICUBIC), dtype=np.float64)
    return np.asarray((noise - noise.mean()) / noise.std())


def _two_nearest(
    centres: NDArray[np.float64], edge: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Gives for each pixel the distances of the nearest and the second centre, and which the nearest is."""
    nearest, second = np.empty((edge, edge)), np.empty((edge, edge))
    index = np.empty((edge, edge), dtype=np.int64)
    columns = np.arange(edge)
    for row in range(edge):
        close = np.flatnonzero(np.abs(centres[:, 0] - row) < 2.5 * TESSERA_PX)
        distance = np.hypot(centres[close, 0] - row, centres[close, 1] - columns[:, None])
        order = np.argpartition(distance, 1, axis=1)[:, :2]
        nearest[row], second[row] = np.take_along_axis(distance, order, 1).T
        index[row] = close[order[:, 0]]
    return nearest, second, index


def _bytes(picture: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8)
