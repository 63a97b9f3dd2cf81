"""What every reader of large images gives, and what every writer takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from tilefuse.errors import ImageError

Array = np.ndarray[Any, np.dtype[Any]]
Alpha = Literal["none", "straight", "premultiplied"]
# TIFF tag number, TIFF type number, values.
Tag = tuple[int, int, tuple[Any, ...]]

DTYPES = ("uint8", "uint16", "float32")
# A tile or chunk is decoded as a whole, so its size is memory that no budget can lower.
MAX_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class Metadata:
    """What travels with the pixels: ICC profile, dots per inch, GeoTIFF tags, OME-XML, EXIF.

    `exif` is a little-endian block (it starts with b"Exif\\0\\0II") without orientation: the samples are upright.
    """

    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    geo: tuple[Tag, ...] = ()
    ome: str | None = None
    exif: bytes | None = None


@dataclass(frozen=True)
class RasterInfo:
    """Size in pixels, bands (alpha included, last), sample type, and what the samples mean.

    `value_range` is the pair of values that the network sees as 0 and 1; None is the type's own (float: 0..1).
    `decoded_bytes` is what reading a window holds beside it: tiles or chunks are decoded as a whole.
    """

    height: int
    width: int
    bands: int
    dtype: np.dtype[Any]
    alpha: Alpha = "none"
    value_range: tuple[float, float] | None = None
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()
    decoded_bytes: int = 0

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.bands) < 1:
            raise ImageError(f"it declares {self.width} x {self.height} px and {self.bands} bands; there is no pixel")
        if self.dtype.name not in DTYPES or not self.dtype.isnative:
            raise ImageError(f"its samples are {self.dtype}; expected one of {', '.join(DTYPES)}. Convert it first")

    @property
    def nbytes(self) -> int:
        """Size of the decoded image."""
        return self.height * self.width * self.bands * self.dtype.itemsize


class RasterReader(Protocol):
    """Gives windows of an image that need not fit memory."""

    @property
    def info(self) -> RasterInfo:
        """What the image is."""
        ...

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return [y1 - y0, x1 - x0, bands] in the image's own type.

        Raises:
            ImageError: the part is damaged; the message names it.
        """
        ...

    def close(self) -> None:
        """Let go of files; reading ends."""
        ...


class Raster(Protocol):
    """A result that can be read; encoders take it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and bands."""
        ...

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        """Return [y1 - y0, x1 - x0, bands]."""
        ...


class RasterWriter(Protocol):
    """Takes finished windows in any order and holds none of them."""

    def write(self, y: int, x: int, block: Array) -> Array:
        """Store [h, w, bands] with its first pixel at (y, x) and return its samples in one piece."""
        ...

    def finish(self) -> None:
        """Flush everything to the disk."""
        ...
