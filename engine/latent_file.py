"""The .tfz file: rounded latents of an autoencoder, coded by LZMA, under a header with checksums."""

from __future__ import annotations

import lzma
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilefuse.errors import ImageError

# As PNG's, so that a transfer that changes line ends or drops the eighth bit shows in the first bytes.
MAGIC = b"\x89TFZ\r\n\x1a\n"
VERSION = 1
MAX_PIXELS = 500_000_000
MAX_FILE_BYTES = 1 << 30
MAX_LATENTS = 256
LARGEST = 127
SAMPLE_BITS = (8, 16, 32)

# Version, bits a sample, colour channels, reduction, coding, latent channels, width, height, model, payload bytes and
# CRC-32.
_FIELDS = struct.Struct("<HBBBBHII32sQI")
_CHECK = struct.Struct("<I")
HEADER_BYTES = len(MAGIC) + _FIELDS.size + _CHECK.size


@dataclass(frozen=True)
class Coding:
    """An order of the latents, channel by channel or pixel by pixel, and the high bits of each that predict the next.

    Which is smaller depends on the picture, so the encoder tries all and the file says which it took.
    """

    interleaved: bool
    context_bits: int

    @property
    def filters(self) -> list[dict[str, int]]:
        """What LZMA is told."""
        return [{"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": 1 << 20, "lc": self.context_bits, "lp": 0, "pb": 0}]

    def symbols(self, latents: NDArray[np.int8]) -> bytes:
        """Returns latents [C, h, w] in order."""
        return np.ascontiguousarray(latents.transpose(1, 2, 0) if self.interleaved else latents).tobytes()

    def latents(self, symbols: bytes, shape: tuple[int, int, int]) -> NDArray[np.int8]:
        """Returns latents of `shape` [C, h, w] from their symbols."""
        flat = np.frombuffer(symbols, np.int8)
        if not self.interleaved:
            return flat.reshape(shape)
        channels, rows, columns = shape
        return np.ascontiguousarray(flat.reshape(rows, columns, channels).transpose(2, 0, 1))


# The file holds the place in this list; append, never reorder.
CODINGS = (Coding(False, 0), Coding(False, 4), Coding(True, 0))


@dataclass(frozen=True)
class LatentHeader:
    """What a file says of itself: the image's size in pixels and samples, and the network that wrote it.

    `reduction` is how many pixels an edge one latent stands for; `model` is the network's SHA-256.
    """

    width: int
    height: int
    colours: int
    sample_bits: int
    reduction: int
    latents: int
    model: bytes

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape [latents, rows, columns] of what the file holds."""
        return self.latents, -(-self.height // self.reduction), -(-self.width // self.reduction)

    def problem(self) -> str | None:
        """Tells what no file of this version can say, or None."""
        checks = (
            (self.width >= 1 and self.height >= 1, f"a size of {self.width} x {self.height} pixels"),
            (self.width * self.height <= MAX_PIXELS, f"{self.width} x {self.height} pixels, past {MAX_PIXELS}"),
            (self.colours in (1, 3), f"{self.colours} colour channels, expected 1 or 3"),
            (self.sample_bits in SAMPLE_BITS, f"{self.sample_bits} bits a sample, expected 8, 16 or 32"),
            (1 <= self.reduction <= 64, f"a reduction by {self.reduction}, expected 1 to 64"),
            (1 <= self.latents <= MAX_LATENTS, f"{self.latents} latent channels, expected 1 to {MAX_LATENTS}"),
            (len(self.model) == 32, f"a model hash of {len(self.model)} bytes, expected 32"),
        )
        return next((text for holds, text in checks if not holds), None)


def encode_latents(header: LatentHeader, latents: NDArray[np.int8]) -> bytes:
    """Returns the bytes of a file that holds `latents`, int8 of the header's shape.

    Raises:
        ImageError: no file can hold such an image.
    """
    problem = header.problem()
    if problem is not None:
        raise ImageError(f"the image has {problem}: a .tfz file can't hold it")
    if latents.shape != header.shape or latents.dtype != np.int8:
        raise ImageError(f"latents of {latents.shape} and {latents.dtype}; expected {header.shape} and int8")
    payloads = [lzma.compress(c.symbols(latents), lzma.FORMAT_RAW, filters=c.filters) for c in CODINGS]
    coding = min(range(len(CODINGS)), key=lambda place: len(payloads[place]))
    payload = payloads[coding]
    fields = _FIELDS.pack(
        VERSION,
        header.sample_bits,
        header.colours,
        header.reduction,
        coding,
        header.latents,
        header.width,
        header.height,
        header.model,
        len(payload),
        zlib.crc32(payload),
    )
    start = MAGIC + fields
    return start + _CHECK.pack(zlib.crc32(start)) + payload


def read_header(data: bytes) -> LatentHeader:
    """Returns the header of a file's bytes, its checksums checked, the payload's too; nothing is decoded.

    Raises:
        ImageError: another kind of file or version, or a damaged or truncated one.
    """
    return _read(data)[0]


def _read(data: bytes) -> tuple[LatentHeader, Coding]:
    if not data.startswith(MAGIC):
        raise ImageError("no .tfz file by its content; give one that `tilefuse compress` wrote")
    if len(data) < HEADER_BYTES:
        raise ImageError(f"truncated: {len(data)} bytes, less than the header's {HEADER_BYTES}; copy it again")
    fields_end = HEADER_BYTES - _CHECK.size
    if _CHECK.unpack_from(data, fields_end)[0] != zlib.crc32(data[:fields_end]):
        raise ImageError("the header's checksum is wrong: the file is damaged; copy it again")
    version, bits, colours, reduction, coding, latents, width, height, model, size, check = _FIELDS.unpack_from(
        data, len(MAGIC)
    )
    if version != VERSION:
        raise ImageError(f"a .tfz file of version {version}; this tilefuse reads version {VERSION}: upgrade it")
    header = LatentHeader(width, height, colours, bits, reduction, latents, model)
    problem = f"coding {coding}" if coding >= len(CODINGS) else header.problem()
    if problem is not None:
        raise ImageError(f"the header says {problem}; the file is damaged or made to hurt")
    payload = memoryview(data)[HEADER_BYTES:]
    if len(payload) != size:
        raise ImageError(f"{len(payload)} bytes after the header, which says {size}: truncated or damaged; copy again")
    if zlib.crc32(payload) != check:
        raise ImageError("the payload's checksum is wrong: the file is damaged; copy it again")
    return header, CODINGS[coding]


def decode_latents(data: bytes) -> tuple[LatentHeader, NDArray[np.int8]]:
    """Returns the header and the latents, int8 of its shape, decoding no more than the header declares.

    Raises:
        ImageError: as `read_header`, or a payload that is none of this header.
    """
    header, coding = _read(data)
    size = int(np.prod(header.shape))
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=coding.filters)
    try:
        symbols = decoder.decompress(memoryview(data)[HEADER_BYTES:], max_length=size + 1)
    except lzma.LZMAError as error:
        raise ImageError(f"the payload can't be decoded ({error}); the file is damaged or made to hurt") from error
    if len(symbols) != size:
        more = "at least " if len(symbols) > size else ""
        raise ImageError(f"the payload holds {more}{len(symbols)} latents, the header declares {size}; the file is bad")
    return header, coding.latents(symbols, header.shape)
