"""Alpha beside colour: what hides under transparent pixels, and what a network may not change about opacity."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BLEED_RADIUS_PX = 16
_NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
_STRIP_VALUES = 1 << 22


def bleed(pixels: Array, alpha: Array) -> Array:
    """Return `pixels` with fully transparent ones near visible ones given their neighbours' colour.

    `pixels` is [H, W, C] straight colour, `alpha` [H, W]. Interpolation mixes the colour under transparent pixels into
    visible edges, where it fringes. In each of `BLEED_RADIUS_PX` rounds, a pixel without colour takes the mean of those
    of its 8 neighbours that have one, in the first round weighted by alpha. A result depends on nothing farther away
    than that radius: a tile with as much more halo gives the same as the whole.
    """
    height, width = alpha.shape
    weight = np.maximum(alpha, 0).astype(np.float32)
    empty = weight <= 0
    if not empty.any() or empty.all():
        return pixels
    filled = pixels.copy()
    rows, columns = np.nonzero(empty & _beside(~empty))
    for _ in range(BLEED_RADIUS_PX):
        total = np.zeros(rows.size, np.float32)
        count = np.zeros(rows.size, np.float32)
        mixed = np.zeros((rows.size, pixels.shape[2]), np.float32)
        reached = []
        for dy, dx in _NEIGHBOURS:
            y, x = rows + dy, columns + dx
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            y, x = np.where(inside, y, 0), np.where(inside, x, 0)
            share = np.where(inside, weight[y, x], 0)
            mixed += filled[y, x] * share[:, None]
            total += share
            count += share > 0
            reached.append((y * width + x)[inside & empty[y, x]])
        mean = mixed / total[:, None]
        filled[rows, columns] = np.rint(mean) if pixels.dtype.kind == "u" else mean
        weight[rows, columns] = total / count
        empty[rows, columns] = False
        candidates = np.unique(np.concatenate(reached))
        rows, columns = np.divmod(candidates[empty.reshape(-1)[candidates]], width)
    return filled


def keep_flat(alpha: Array, source: Array) -> None:
    """Give `alpha` [h, w], in place, the value of `source` [H, W] wherever the latter is constant over 3 x 3 pixels.

    Networks do not reproduce constants to the last level; what was opaque or clear must stay so, away from edges.
    """
    flat = _flat(source)
    rows = np.arange(alpha.shape[0]) * source.shape[0] // alpha.shape[0]
    columns = np.arange(alpha.shape[1]) * source.shape[1] // alpha.shape[1]
    step = max(1, _STRIP_VALUES // alpha.shape[1])
    for top in range(0, alpha.shape[0], step):
        near = np.ix_(rows[top : top + step], columns)
        np.copyto(alpha[top : top + step], source[near], where=flat[near])


def varies(alpha: Array) -> bool:
    """Tell whether alpha is not one value throughout."""
    return bool((alpha != alpha[0, 0]).any())


def _beside(mask: Array) -> Array:
    """Return where a pixel or one of its 8 neighbours is set."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    wide = tall.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide


def _flat(alpha: Array) -> Array:
    """Return where a pixel equals its 8 neighbours (those outside the image apart)."""
    same_row = np.ones(alpha.shape, bool)
    equal = alpha[:, 1:] == alpha[:, :-1]
    same_row[:, 1:] &= equal
    same_row[:, :-1] &= equal
    flat = same_row.copy()
    equal = alpha[1:] == alpha[:-1]
    flat[1:] &= same_row[:-1] & equal
    flat[:-1] &= same_row[1:] & equal
    return flat
