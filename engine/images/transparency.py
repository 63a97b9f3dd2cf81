"""Alpha beside colour: what hides under transparent pixels, and what a network may not change about opacity."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BLEED_RADIUS_PX = 16
_PIECE = 1 << 16
_STRIP_VALUES = 1 << 22


def bleed(pixels: Array, alpha: Array) -> Array:
    """Return `pixels` with fully transparent ones near visible ones given their neighbours' colour.

    `pixels` is [H, W, C] straight colour, `alpha` [H, W]. Interpolation mixes the colour under transparent pixels into
    visible edges, where it fringes. In each of `BLEED_RADIUS_PX` rounds, a pixel without colour takes the mean of those
    of its 8 neighbours that have one, in the first round weighted by alpha. A result depends on nothing farther away
    than that radius: a tile with as much more halo gives the same as the whole.
    """
    weight = np.pad(np.maximum(alpha, 0).astype(np.float32), 1)
    hidden = np.pad(alpha <= 0, 1)
    if not hidden.any() or not weight.any():
        return pixels
    # A border of one pixel and flat indices spare a bounds check for each of the 8 neighbours.
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    around = [dy * weight.shape[1] + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    frontier = np.flatnonzero(hidden & _beside(weight > 0))
    for _ in range(BLEED_RADIUS_PX):
        pieces = np.array_split(frontier, -(-frontier.size // _PIECE) or 1)
        means = [
            _mean_around(padded.reshape(-1, pixels.shape[2]), weight.reshape(-1), piece, around) for piece in pieces
        ]
        padded.reshape(-1, pixels.shape[2])[frontier] = np.concatenate([colour for colour, _ in means])
        weight.reshape(-1)[frontier] = np.concatenate([share for _, share in means])
        hidden.reshape(-1)[frontier] = False
        beside = np.zeros(hidden.size, bool)
        for step in around:
            beside[frontier + step] = True
        frontier = np.flatnonzero(beside & hidden.reshape(-1))
        if not frontier.size:
            break
    return np.ascontiguousarray(padded[1:-1, 1:-1])


def _mean_around(pixels: Array, weight: Array, places: Array, around: list[int]) -> tuple[Array, Array]:
    """Return, for each flat index, its neighbours' weighted mean colour and the mean weight of those that count."""
    total = np.zeros(places.size, np.float32)
    count = np.zeros(places.size, np.float32)
    mixed = np.zeros((places.size, pixels.shape[1]), np.float32)
    for step in around:
        near = places + step
        share = weight[near]
        mixed += pixels[near] * share[:, None]
        total += share
        count += share > 0
    mixed /= total[:, None]
    return (np.rint(mixed) if pixels.dtype.kind == "u" else mixed).astype(pixels.dtype), total / count


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
