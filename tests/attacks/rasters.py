"""Raster files that must be refused, and files that promise more than they hold: TIFF, Zarr and .npy."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

Attack = tuple[str, Path, str]
Tags = dict[int, tuple[int, list[int]]]


def big_tiff(path: Path, tags: Tags, next_directory: int = 0) -> None:
    """Write a BigTIFF of one directory; a tag is (type, values), type 3 short, 4 long, 16 long8."""
    codes = {3: "H", 4: "I", 16: "Q"}
    start = 16
    entries, values = b"", b""
    value_start = start + 8 + 20 * len(tags) + 8
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}{codes[kind]}", *numbers)
        place = packed.ljust(8, b"\0")
        if len(packed) > 8:
            place = struct.pack("<Q", value_start + len(values))
            values += packed
        entries += struct.pack("<HHQ", tag, kind, len(numbers)) + place
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, start)
    path.write_bytes(head + struct.pack("<Q", len(tags)) + entries + struct.pack("<Q", next_directory) + values)


def sparse_tags(height: int, width: int, tile: int) -> Tags:
    """Describe a gray image whose tiles are all absent, which reads as zeros."""
    tiles = -(-height // tile) * -(-width // tile)
    return {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8]),
        259: (3, [8]),
        262: (3, [1]),
        277: (3, [1]),
        322: (4, [tile]),
        323: (4, [tile]),
        324: (16, [0] * tiles),
        325: (16, [0] * tiles),
    }


def write_sparse(path: Path, height: int, width: int, tile: int = 512) -> None:
    """Write a BigTIFF of any size in a few bytes a tile."""
    big_tiff(path, sparse_tags(height, width, tile))


def build(folder: Path) -> list[Attack]:
    """Write the files and return (name, path, words of the refusal)."""
    attacks: list[Attack] = []

    def path(name: str, expected: str) -> Path:
        attacks.append((name, folder / name, expected))
        return folder / name

    base = sparse_tags(64, 64, 32)
    big_tiff(path("cycle.tif", "form a cycle"), base, next_directory=16)
    big_tiff(path("outside.tif", "lies at byte 999999"), base, next_directory=999_999)
    big_tiff(path("huge-tile.tif", "smaller tiles"), base | {322: (4, [1 << 20]), 323: (4, [1 << 20])})
    big_tiff(path("no-tile.tif", "declared as 0 x 32"), base | {322: (4, [0])})
    big_tiff(path("no-size.tif", "no pixel"), base | {256: (4, [0])})
    big_tiff(path("few-offsets.tif", "lists 1"), base | {324: (16, [8]), 325: (16, [8])})
    big_tiff(path("past-end.tif", "past the end"), base | {324: (16, [10_000] * 4), 325: (16, [50] * 4)})
    big_tiff(path("absurd-count.tif", "declares"), base | {324: (16, [16] * 4), 325: (16, [1 << 40] * 4)})
    path("many-tags.tif", "declares 281474976710656 tags").write_bytes(
        struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 1 << 48)
    )
    path("short.tif", "damaged or truncated").write_bytes(struct.pack("<2sHI", b"II", 42, 500))
    _npy_files(path)
    _zarr_folders(path)
    os.mkfifo(path("fifo.tif", "FIFO"))
    path("text.npy", "none of TIFF").write_text("hello")
    attacks.append(("zero", Path("/dev/zero"), "device"))
    attacks.append(("missing", folder / "none.npy", "no such file"))
    return attacks


def _npy_files(path: Callable[[str, str], Path]) -> None:
    np.save(path("objects.npy", "object"), np.array([[1, "a"], [None, 2]], object), allow_pickle=True)
    np.save(path("columns.npy", "columns first"), np.asfortranarray(np.zeros((8, 9), np.uint8)))
    np.save(path("doubles.npy", "float64"), np.zeros((8, 8)))
    np.save(path("nothing.npy", "no pixel"), np.zeros((0, 8), np.uint8))
    np.save(path("vector.npy", "expected [H, W]"), np.zeros(8, np.uint8))
    lying = path("lying.npy", "and holds")
    np.save(lying, np.zeros((64, 64), np.uint8))
    os.truncate(lying, 1000)
    broken = path("broken.npy", "header is damaged")
    broken.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + b"{" * 118)


def _zarr_folders(path: Callable[[str, str], Path]) -> None:
    path("empty.zarr", "without Zarr metadata").mkdir()
    array = {
        "zarr_format": 2,
        "shape": [64, 64],
        "chunks": [32, 32],
        "dtype": "|u1",
        "compressor": None,
        "fill_value": 0,
        "order": "C",
        "filters": None,
    }
    for name, expected, changed in (
        ("pickle.zarr", "unpickles", {"filters": [{"id": "pickle", "protocol": 5}], "dtype": "|O"}),
        ("huge-chunk.zarr", "Rechunk", {"shape": [1 << 20, 1 << 20], "chunks": [1 << 20, 1 << 20]}),
        ("five.zarr", "without named axes", {"shape": [2, 3, 4, 64, 64], "chunks": [1, 1, 1, 64, 64]}),
        ("doubles.zarr", "float64", {"dtype": "<f8"}),
    ):
        folder = path(name, expected)
        folder.mkdir()
        (folder / ".zarray").write_text(json.dumps(array | changed))
    folder = path("broken.zarr", "damaged")
    folder.mkdir()
    (folder / "zarr.json").write_text("{")
