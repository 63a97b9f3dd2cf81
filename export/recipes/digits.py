"""Scikit-learn's handwritten digits, enlarged to 28x28, with a part held out."""

import zlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tilefuse.errors import ModelError

SIZE = 28
CLASSES = 10
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class Labelled:
    """Gray images [N, 1, 28, 28] in 0..1 and what they show, [N] of 0..9."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Digits:
    """Digits to train on and digits to measure with."""

    train: Labelled
    held_out: Labelled


@cache
def load_digits() -> Digits:
    """Reads the 1797 digits (8x8, Pillow's bicubic filter to 28x28); a fifth, always the same, is held out.

    Raises ModelError without scikit-learn.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    table = _read()
    small = (table[:, :64].reshape(-1, 8, 8) / 16.0).astype(np.float32)
    resized = (Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in small)
    images = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).clamp(0.0, 1.0)[:, None]
    labels = torch.from_numpy(table[:, 64].astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(table)))
    border = round(HELD_OUT_SHARE * len(table))
    measured, trained = order[:border], order[border:]
    return Digits(Labelled(images[trained], labels[trained]), Labelled(images[measured], labels[measured]))


def _read() -> NDArray[np.float64]:
    # `find_spec` instead of an import: one file of the package is read, and importing it costs seconds.
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ModelError("the digits come with scikit-learn: pip install tilefuse[train]")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise ModelError("the installed scikit-learn lacks datasets/data/digits.csv.gz; pip install tilefuse[train]")
    try:
        table = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ModelError(
            f"scikit-learn's digits.csv.gz can't be read ({error}); pip install --force-reinstall scikit-learn"
        ) from error
    if table.shape != (1797, 65):
        raise ModelError(f"scikit-learn's digits.csv.gz is a table of {table.shape}, expected (1797, 65)")
    return table
