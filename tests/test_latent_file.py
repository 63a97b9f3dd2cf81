"""The .tfz file: what goes in comes out, and nothing damaged, foreign or made to hurt is decoded."""

from __future__ import annotations

import lzma
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from tilefuse import latent_file
from tilefuse.errors import ImageError
from tilefuse.latent_file import HEADER_BYTES, MAGIC, LatentHeader, decode_latents, encode_latents, read_header

HEADER = LatentHeader(37, 21, 3, 8, 8, 5, bytes(range(32)))


def latents(header: LatentHeader = HEADER) -> np.ndarray:
    drawn = np.random.default_rng(3).normal(0, 4, header.shape)
    return np.rint(drawn).clip(-127, 127).astype(np.int8)


def checked(start: bytes) -> bytes:
    """Give a header's fields the checksum that they ask for."""
    return start + struct.pack("<I", zlib.crc32(start))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 9), (8, 8), (37, 21), (640, 3)])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_what_goes_in_comes_out(width: int, height: int, bits: int) -> None:
    header = replace(HEADER, width=width, height=height, sample_bits=bits)
    found, decoded = decode_latents(encode_latents(header, latents(header)))
    assert found == header
    assert decoded.shape == (5, -(-height // 8), -(-width // 8))
    assert np.array_equal(decoded, latents(header))


@pytest.mark.parametrize("chosen", range(len(latent_file.CODINGS)))
def test_every_coding_comes_back(chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    coding = latent_file.CODINGS[chosen]
    assert np.array_equal(coding.latents(coding.symbols(latents()), HEADER.shape), latents())
    others = tuple(replace(coding, context_bits=1) for _ in range(chosen))
    with monkeypatch.context() as patch:
        patch.setattr(latent_file, "CODINGS", (*others, coding))
        patch.setattr(latent_file, "min", lambda *_, **__: chosen, raising=False)
        data = encode_latents(HEADER, latents())
    assert np.array_equal(decode_latents(data)[1], latents())


def test_the_extremes_survive() -> None:
    full = np.full(HEADER.shape, -127, np.int8)
    full[:, ::2] = 127
    assert np.array_equal(decode_latents(encode_latents(HEADER, full))[1], full)


def test_latents_with_little_information_take_few_bytes() -> None:
    header = replace(HEADER, width=800, height=800)
    rare = np.random.default_rng(0).random(header.shape) < 0.02
    entropy_bits = rare.size * -(0.02 * np.log2(0.02) + 0.98 * np.log2(0.98))
    assert len(encode_latents(header, rare.astype(np.int8))) < HEADER_BYTES + 2 * entropy_bits / 8


def test_every_changed_byte_of_the_header_and_of_the_payload_is_seen() -> None:
    data = encode_latents(HEADER, latents())
    assert len(data) > HEADER_BYTES + 40
    for position in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= change
            with pytest.raises(ImageError):
                decode_latents(bytes(damaged))


def test_every_truncation_and_every_addition_is_seen() -> None:
    data = encode_latents(HEADER, latents())
    for length in range(len(data)):
        with pytest.raises(ImageError):
            decode_latents(data[:length])
    with pytest.raises(ImageError, match="after the header"):
        decode_latents(data + b"\0")


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"hello", MAGIC.replace(b"\r\n", b"\n")])
def test_another_kind_of_file_is_named(data: bytes) -> None:
    with pytest.raises(ImageError, match="tilefuse compress"):
        decode_latents(data)


def test_a_later_version_is_named() -> None:
    data = encode_latents(HEADER, latents())
    start = MAGIC + struct.pack("<H", 2) + data[len(MAGIC) + 2 : HEADER_BYTES - 4]
    with pytest.raises(ImageError, match=r"version 2.*upgrade"):
        decode_latents(checked(start) + data[HEADER_BYTES:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0}, "0 x 21"),
        ({"width": 2**31, "height": 2**31}, "past 500000000"),
        ({"colours": 2}, "2 colour channels"),
        ({"sample_bits": 12}, "12 bits"),
        ({"reduction": 0}, "reduction by 0"),
        ({"latents": 0}, "0 latent"),
        ({"latents": 60000}, "60000 latent"),
        ({"model": b"short"}, "model hash"),
    ],
)
def test_headers_that_cannot_be(change: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    header = replace(HEADER, **change)
    with pytest.raises(ImageError, match=words):
        encode_latents(header, latents())
    if "model" in change:
        return
    # The same header with valid checksums, as an attacker writes it.
    with monkeypatch.context() as patch:
        patch.setattr(LatentHeader, "problem", lambda _: None)
        patch.setattr(LatentHeader, "shape", HEADER.shape)
        data = encode_latents(header, latents())
    with pytest.raises(ImageError, match=f"header says.*{words}"):
        read_header(data)


def test_a_payload_of_more_than_declared_is_not_unfolded() -> None:
    bomb = lzma.compress(bytes(50_000_000), lzma.FORMAT_RAW, filters=latent_file.CODINGS[0].filters)
    assert len(bomb) < 50_000
    data = encode_latents(HEADER, latents())
    fields = data[len(MAGIC) : HEADER_BYTES - 16] + struct.pack("<QI", len(bomb), zlib.crc32(bomb))
    with pytest.raises(ImageError, match=f"at least {5 * 3 * 5 + 1} latents"):
        decode_latents(checked(MAGIC + fields) + bomb)


def test_a_payload_that_is_no_lzma_is_named() -> None:
    data = encode_latents(HEADER, latents())
    junk = b"\xff" * 64
    fields = data[len(MAGIC) : HEADER_BYTES - 16] + struct.pack("<QI", len(junk), zlib.crc32(junk))
    with pytest.raises(ImageError, match="payload"):
        decode_latents(checked(MAGIC + fields) + junk)


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ImageError, match="expected"):
        encode_latents(HEADER, latents()[:, :1])
