"""Images as small files: an autoencoder's encoder, its latents rounded and coded, and its decoder back."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tilefuse.api import Engine, load
from tilefuse.errors import ImageError, ModelError, UsageError
from tilefuse.images import Picture, check_output, check_writable, read_image, replacing, write_image
from tilefuse.images.outputs import shown
from tilefuse.latent_file import (
    LARGEST,
    MAX_FILE_BYTES,
    LatentHeader,
    decode_latents,
    encode_latents,
    read_header,
)
from tilefuse.memory import FULL_SCALE
from tilefuse.planes import run_planes
from tilefuse.source import load_model

SUFFIX = ".tfz"
_DTYPES = {8: np.uint8, 16: np.uint16, 32: np.float32}


@dataclass(frozen=True)
class Compression:
    """What a file costs and is worth: the rate is of the whole file; no PSNR where nothing was compared."""

    input: Path
    output: Path
    width: int
    height: int
    file_bytes: int
    psnr_db: float | None
    notes: tuple[str, ...]

    @property
    def bits_per_pixel(self) -> float:
        """The file's bits over the image's pixels."""
        return 8 * self.file_bytes / (self.width * self.height)


@dataclass(frozen=True, eq=False)
class Codec:
    """An autoencoder in two engines; `model` is the SHA-256 that its files carry, `reduction` pixels per latent."""

    name: str
    encoder: Engine
    decoder: Engine
    model: bytes
    reduction: int

    def encode(self, picture: Picture) -> bytes:
        """Return the bytes of a .tfz file with the picture.

        Raises:
            ImageError: it is transparent, or too large for such a file.
            CapacityError: it does not fit the memory budget.
        """
        if picture.alpha is not None and (picture.alpha != picture.full_scale).any():
            raise ImageError("the image is transparent, which a .tfz file can't hold; put it on a background first")
        latents = np.rint(run_planes(self.encoder, picture.pixels)).clip(-LARGEST, LARGEST).astype(np.int8)
        header = LatentHeader(
            picture.width,
            picture.height,
            picture.pixels.shape[2],
            8 * picture.pixels.dtype.itemsize,
            self.reduction,
            latents.shape[2],
            self.model,
        )
        return encode_latents(header, np.ascontiguousarray(latents.transpose(2, 0, 1)))

    def decode(self, data: bytes) -> Picture:
        """Return the picture in a .tfz file's bytes, in the samples that the original had.

        Raises:
            ImageError: the bytes are no .tfz file, damaged, or of another model.
            CapacityError: the picture does not fit the memory budget.
        """
        declared = read_header(data)
        if declared.model != self.model:
            raise ImageError(
                f"the file was made by another model ({declared.model.hex()[:12]}) than {self.name} "
                f"({self.model.hex()[:12]}); name that one with -m"
            )
        header, latents = decode_latents(data)
        planes = np.ascontiguousarray(latents.transpose(1, 2, 0), np.float32)
        decoded = run_planes(self.decoder, planes)[: header.height, : header.width]
        return Picture(_samples(decoded, header.colours, np.dtype(_DTYPES[header.sample_bits])))


def load_codec(
    source: str | os.PathLike[str] = "autoencoder",
    *,
    device: str = "auto",
    backend: str = "auto",
    memory: int | str | None = None,
) -> Codec:
    """Load an autoencoder's two halves, both in fp32, so that a file decodes to the same picture everywhere.

    Raises:
        ModelError: the model can't be loaded, or has no encoder and decoder of images.
        UsageError: an option has no such value.
        BackendError: no backend can serve.
    """
    model = load_model(source)
    named = [getattr(model.module, name, None) for name in ("encoder", "decoder")]
    halves = [half for half in named if isinstance(half, nn.Module)]
    if len(halves) < 2 or model.footprint is None:
        raise ModelError(f"{model.name} is no autoencoder of images: it has no encoder and decoder; try autoencoder")
    encoder, decoder = (load(half, device=device, backend=backend, precision="fp32", memory=memory) for half in halves)
    return Codec(model.name, encoder, decoder, bytes.fromhex(model.sha256), int(1 / encoder.scale))


def compress_file(
    codec: Codec, source: str | os.PathLike[str], output: str | os.PathLike[str], *, overwrite: bool = False
) -> Compression:
    """Compress an image file into a .tfz file, which appears under its name only when it is complete.

    The PSNR in the result is that of the file decoded again.

    Raises:
        ImageError: the input can't be read, or a .tfz file can't hold it.
        UsageError: the output is not called .tfz, exists (and not `overwrite`), or can't be written.
        CapacityError: the image does not fit the memory budget.
    """
    path = check_compressed(output, overwrite=overwrite)
    picture = read_image(source)
    data = codec.encode(picture)
    quality = psnr_db(codec.decode(data).pixels, picture.pixels)
    lost = tuple(
        f"{what} is not kept in a {SUFFIX} file"
        for what, value in (("the colour profile", picture.icc), ("the EXIF block", picture.exif))
        if value is not None
    )
    with replacing(path, overwrite=overwrite) as stream:
        stream.write(data)
    return Compression(Path(source), path, picture.width, picture.height, len(data), quality, (*picture.notes, *lost))


def check_compressed(output: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Return `output` if a .tfz file can be written there; call it before any work.

    Raises:
        UsageError: it is not called .tfz, exists (and not `overwrite`), or can't be written.
    """
    if Path(output).suffix.lower() != SUFFIX:
        raise UsageError(f"{shown(output)}: compressed images are called {SUFFIX}; give such a name")
    return check_writable(output, overwrite=overwrite)


def decompress_file(
    codec: Codec, source: str | os.PathLike[str], output: str | os.PathLike[str], *, overwrite: bool = False
) -> Compression:
    """Decode a .tfz file into an image file, which appears under its name only when it is complete.

    Raises:
        ImageError: the input is no .tfz file, damaged, or of another model.
        UsageError: the output exists (and not `overwrite`), or can't be written.
        CapacityError: the image does not fit the memory budget.
    """
    path = check_output(output, overwrite=overwrite)
    data, header = read_compressed(source)
    try:
        check_output(path, overwrite=overwrite, size=(header.width, header.height))
        picture = codec.decode(data)
    except ImageError as error:
        raise ImageError(f"{shown(source)}: {error}") from error
    notes = write_image(path, picture, overwrite=overwrite)
    return Compression(Path(source), path, header.width, header.height, len(data), None, notes)


def read_compressed(path: str | os.PathLike[str]) -> tuple[bytes, LatentHeader]:
    """Read a .tfz file, of no more bytes than any such file has, and its header; nothing is decoded.

    Raises:
        ImageError: there is none, it is too large, another kind of file, or damaged.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError(f"{shown(path)}: can't be read ({reason}); check the path") from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{shown(path)}: more than {MAX_FILE_BYTES} bytes, which no {SUFFIX} file has")
    try:
        return data, read_header(data)
    except ImageError as error:
        raise ImageError(f"{shown(path)}: {error}") from error


def psnr_db(result: NDArray[np.generic], reference: NDArray[np.generic]) -> float:
    """Return the PSNR in dB of pixels to others of the same shape and dtype, over all channels."""
    full = FULL_SCALE[reference.dtype]
    total = 0.0
    # A row at a time, because the differences of a large image in fp64 would not fit beside it.
    for ours, theirs in zip(result, reference, strict=True):
        total += float(np.square(np.subtract(ours, theirs, dtype=np.float64)).sum())
    return math.inf if total == 0 else 10 * math.log10(full**2 * reference.size / total)


def _samples(decoded: NDArray[np.float32], colours: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    """Turn the network's [H, W, 3] into the samples of the original, its three channels averaged where it was gray."""
    values = decoded.mean(2, keepdims=True) if colours == 1 else decoded
    if dtype == np.float32:
        return np.ascontiguousarray(values)
    full = FULL_SCALE[dtype]
    rounded: NDArray[np.generic] = np.rint(values * full).clip(0, full).astype(dtype)
    return rounded
