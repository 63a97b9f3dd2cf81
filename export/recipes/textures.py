"""Crops of textures: brick, grass and gravel of scikit-image, tinted, and rendered dead leaves."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tilefuse.export.recipes.dead_leaves import dead_leaves
from tilefuse.export.recipes.photographs import training_photograph

# The photographs are gray; each gets a shadow and a light colour, so that there is colour to learn.
TINTS = {
    "brick.png": ((58, 24, 20), (226, 152, 118)),
    "grass.png": ((16, 34, 12), (172, 206, 96)),
    "gravel.png": ((34, 36, 44), (216, 208, 196)),
}
LEAVES = 8
LEAVES_SIZE = 160
LEAVES_SHARE = 0.1
HELD_OUT_ROWS = 0.2
LARGEST_EDGE = 64


@dataclass(frozen=True)
class Textures:
    """Sheets of texture, uint8 [H, W, 3], from which crops of `edge` pixels are cut."""

    sheets: tuple[NDArray[np.uint8], ...]
    chances: NDArray[np.float64]
    edge: int

    def batch(self, rng: np.random.Generator, count: int) -> Tensor:
        """Cuts `count` random crops, mirrored at random: fp32 [count, 3, edge, edge] in 0..1."""
        crops = []
        for index in rng.choice(len(self.sheets), count, p=self.chances):
            sheet = self.sheets[index]
            top, left = (int(rng.integers(room - self.edge + 1)) for room in sheet.shape[:2])
            crop = sheet[top : top + self.edge, left : left + self.edge]
            crops.append(crop[:, ::-1] if rng.integers(2) else crop)
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous().float().div_(255.0)


def load_textures(edge: int, *, held_out: bool = False) -> Textures:
    """Reads and renders the sheets, their lowest fifth held out.

    The photographs are shrunk to what 64 of their pixels fit into `edge`. Raises ModelError without scikit-image.
    """
    photographs = [_tinted(name, max(1, LARGEST_EDGE // edge)) for name in TINTS]
    leaves = [dead_leaves([77, index], LEAVES_SIZE) for index in range(LEAVES)]
    sheets = tuple(_part(sheet, held_out) for sheet in (*photographs, *leaves))
    shares = [(1.0 - LEAVES_SHARE) / len(photographs)] * len(photographs) + [LEAVES_SHARE / LEAVES] * LEAVES
    return Textures(sheets, np.array(shares), edge)


def _tinted(name: str, divisor: int) -> NDArray[np.uint8]:
    gray = Image.fromarray(training_photograph(name)).convert("L").reduce(divisor)
    levels = np.asarray(gray, dtype=np.float64)
    low, high = np.percentile(levels, (1, 99))
    share = np.clip((levels - low) / (high - low), 0.0, 1.0)[..., None]
    dark, light = (np.array(colour, dtype=np.float64) for colour in TINTS[name])
    return np.asarray(np.rint(dark + share * (light - dark)), dtype=np.uint8)


def _part(sheet: NDArray[np.uint8], held_out: bool) -> NDArray[np.uint8]:
    border = sheet.shape[0] - max(LARGEST_EDGE, round(HELD_OUT_ROWS * sheet.shape[0]))
    return sheet[border:] if held_out else sheet[:border]
