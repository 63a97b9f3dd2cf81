"""Model files that must be refused: code in them, truncated, overlapping, lying about sizes, of no known network."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from tilefuse.export.architectures import ARCHITECTURES
from tilefuse.export.archives import LEGACY_MAGIC

Attack = tuple[str, Path, str]

MARKER = "the_file_ran"
PROTOCOL, STOP = b"\x80\x02", b"."


class Opens:
    """Pickles as a call that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


class Calls:
    """Pickles as any call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Storage:
    """Stands for a storage of a torch pickle, of any claimed length."""

    def __init__(self, elements: int, *more: None) -> None:
        self.persistent = ("storage", torch.FloatStorage, "0", "cpu", elements, *more)


class StoragePickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.persistent if isinstance(value, Storage) else None


def network(name: str = "SRVGGNetCompact") -> dict[str, Tensor]:
    """Return the weights of a tiny network."""
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    torch.manual_seed(0)
    return {
        key: value.detach() for key, value in architecture.module(**dict(architecture.example)).state_dict().items()
    }


def torch_saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def legacy_saved(content: Any) -> bytes:
    return torch_saved(content, _use_new_zipfile_serialization=False)


def pickled(content: Any) -> bytes:
    stream = io.BytesIO()
    StoragePickler(stream, 2).dump(content)
    return stream.getvalue()


def archive(pickled_state: bytes, records: Mapping[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip archive laid out like torch.save's, around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as file:
        for name, data in {
            "data.pkl": pickled_state,
            "byteorder": b"little",
            "version": b"3\n",
            **(records or {}),
        }.items():
            file.writestr(f"net/{name}", data)
    return stream.getvalue()


def legacy(pickled_state: bytes, storages: bytes = b"") -> bytes:
    """Return a file laid out like torch.save's before version 1.6, around any pickle."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [LEGACY_MAGIC, 1001, system]
    return b"".join(pickle.dumps(part, 2) for part in parts) + pickled_state + pickle.dumps(["0"], 2) + storages


def tensor_of(storage: Storage, shape: tuple[int, ...], stride: tuple[int, ...]) -> Calls:
    return Calls(torch._utils._rebuild_tensor_v2, storage, 0, shape, stride, False, OrderedDict())


def safetensors(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def encoding_bomb() -> bytes:
    """Return a pickle of 40 nested calls, each of which doubles its input."""
    calls = b"c_codecs\nencode\n" * 40
    double = b"X\x09\x00\x00\x00hex_codec\x86R"
    return PROTOCOL + calls + b"X\x04\x00\x00\x00AAAA" + b"X\x06\x00\x00\x00latin1\x86R" + double * 39 + STOP


def overlapping_archive() -> bytes:
    """Return an archive whose directory lists one record a thousand times."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("net/data.pkl", pickled({}))
        file.writestr("net/data/0", bytes(1 << 16))
        for copy in range(1, 1000):
            info = zipfile.ZipInfo(f"net/data/{copy}")
            info.header_offset, info.file_size = file.filelist[1].header_offset, 1 << 16
            info.compress_size, info.CRC = 1 << 16, file.filelist[1].CRC
            file.filelist.append(info)
    return stream.getvalue()


def pickles(marker: Path) -> list[tuple[str, bytes, str]]:
    """Return files of torch.save's formats: what they are, their bytes, what must be said."""
    state = network()
    whole, old = torch_saved(state), legacy_saved(state)
    code = {"params": state, "callback": Opens(marker)}
    cyclic = PROTOCOL + b"}q\x00X\x06\x00\x00\x00paramsh\x00s" + STOP
    expanded = {"w": torch.zeros(1).expand(10**12)}
    directory = bytearray(whole)
    at = directory.rfind(b"PK\x05\x06")
    directory[at - 36 : at - 28] = struct.pack("<Q", 1 << 40)
    return [
        ("code in an archive", torch_saved(code), "io.open, not only tensors; nothing in it was run"),
        ("code in an old file", legacy_saved(code), "io.open, not only tensors; nothing in it was run"),
        ("code in a pickle", pickle.dumps(Opens(marker), 2), "io.open"),
        ("code in a pickle of protocol 0", b"\x80\x00" + pickle.dumps(Opens(marker), 0), "protocol 0"),
        ("code in a pickle of protocol 4", pickle.dumps(Opens(marker), 4), "protocol 4"),
        ("code behind another protocol byte", b"\x80\x02" + pickle.dumps(Opens(marker), 4)[2:], "io.open"),
        ("code by INST", archive(PROTOCOL + b"(S'touch x'\nios\nsystem\n" + STOP), "os.system"),
        ("code in a second pickle", archive(pickled({}), {"x/data.pkl": pickled(Opens(marker))}), "io.open"),
        ("code in a shouted pickle", archive(pickled({}), {"DATA.PKL": pickled(Opens(marker))}), "io.open"),
        ("code after the state", legacy(pickled({}) + pickled(Opens(marker))), "io.open"),
        ("an escape sequence for a name", archive(PROTOCOL + b"c\x1b[31m\n\x1b\n" + STOP), "\\x1b[31m"),
        ("a whole module", torch_saved(nn.Conv2d(1, 1, 1)), "torch.nn.modules.conv.Conv2d"),
        ("eval", archive(pickled(Calls(eval, "1"))), "eval"),
        ("bytearray of a terabyte", archive(pickled(Calls(bytearray, 10**12))), "bytearray"),
        ("tensor of a terabyte", archive(pickled(Calls(torch.FloatTensor, 10**12))), "torch.FloatTensor"),
        ("doubling encoders", archive(encoding_bomb()), "_codecs.encode"),
        ("a sparse tensor", torch_saved({"w": torch.eye(3).to_sparse()}), "_rebuild_sparse_tensor"),
        ("a meta tensor", torch_saved({"w": torch.zeros(1 << 40, device="meta")}), "_rebuild_meta_tensor"),
        ("one number shown a trillion times", torch_saved(expanded), "more elements than the file's"),
        ("the same in an old file", legacy_saved(expanded), "more elements than the file's"),
        (
            "a short storage",
            archive(pickled({"w": tensor_of(Storage(1 << 40), (1 << 40,), (1,))}), {"data/0": bytes(16)}),
            "damaged",
        ),
        (
            "a short old storage",
            legacy(pickled({"w": tensor_of(Storage(1 << 34, None), (4,), (1,))}), bytes(24)),
            "damaged",
        ),
        (
            "a negative size",
            archive(pickled({"w": tensor_of(Storage(4), (-4,), (1,))}), {"data/0": bytes(16)}),
            "damaged",
        ),
        ("a missing storage", archive(pickled({"w": tensor_of(Storage(4), (4,), (1,))})), "damaged"),
        ("a cycle", archive(cyclic), "no tensors"),
        ("deep nesting", archive(PROTOCOL + b")" + b"\x85" * 200_000 + STOP), "no tensors"),
        ("an unknown memo", archive(PROTOCOL + b"h\x07" + STOP), "damaged"),
        ("no end", archive(PROTOCOL + b"}"), "truncated pickle"),
        ("17 MiB of pickle", archive(PROTOCOL + b")0" * (17 << 19) + b")" + STOP), "bytes of pickled objects"),
        ("a compressed archive", archive(pickled({}), {"data/0": bytes(64 << 20)}, zipfile.ZIP_DEFLATED), "compressed"),
        ("overlapping records", overlapping_archive(), "more than its own size"),
        ("a directory of a terabyte", bytes(directory), "directory"),
        ("TorchScript", archive(pickled({}), {"code/__torch__.py": b"", "constants.pkl": pickled(())}), "TorchScript"),
        ("a zip of other things", archive(b"").replace(b"data.pkl", b"data.txt"), "without data.pkl"),
        ("half an archive", whole[: len(whole) // 2], "truncated archive"),
        ("half an old file", old[: len(old) // 2], "damaged"),
        ("no tensors", torch_saved({"epoch": 3}), "no tensors"),
        ("a lone tensor", torch_saved(torch.zeros(3)), "no tensors"),
        ("a list", torch_saved([torch.zeros(3)]), "no tensors"),
        ("NaN", torch_saved(state | {"body.2.bias": torch.full((1,), torch.nan)}), "body.2.bias holds NaN"),
        ("infinity", torch_saved(state | {"body.2.bias": torch.full((1,), torch.inf)}), "body.2.bias holds NaN"),
        (
            "too large for fp32",
            torch_saved(state | {"body.2.bias": torch.full((1,), 1e300, dtype=torch.float64)}),
            "body.2.bias holds NaN",
        ),
    ]


def headers() -> list[tuple[str, bytes, str]]:
    """Return safetensors files: what they are, their bytes, what must be said."""
    state = network()
    whole = save(state)
    return [
        ("header of 2**63 bytes", safetensors(b"{}", length=2**63 - 1), "a header of 9223372036854775807 bytes"),
        ("header past the end", safetensors(b"{}", length=3), "a header of 3 bytes"),
        ("header of 9 MiB", safetensors(b"{}" + b" " * (9 << 20)), "a header of"),
        ("seven bytes", whole[:7], "truncated"),
        ("half a header", whole[:60], "truncated"),
        ("half the data", whole[:-8], "truncated"),
        ("bytes after the data", whole + b"x", "damaged"),
        ("overlap", safetensors({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)), "damaged"),
        ("hole", safetensors({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)), "damaged"),
        ("wrong size", safetensors({"a": entry(0, 8, [3])}, bytes(8)), "damaged"),
        ("past the data", safetensors({"a": entry(0, 80, [20])}, bytes(8)), "damaged"),
        ("overflowing shape", safetensors({"a": entry(0, 8, [1 << 40, 1 << 40])}, bytes(8)), "damaged"),
        ("unknown type", safetensors({"a": entry(0, 8, [1], "F99")}, bytes(8)), "damaged"),
        ("complex numbers", safetensors({"a": entry(0, 8, [1], "C64")}, bytes(8)), "expected plain real numbers"),
        ("deep JSON", safetensors(b'{"a":' * 100_000), "damaged"),
        ("no JSON", safetensors(b"{nothing at all}"), "damaged"),
        ("no tensors", safetensors({}), "no tensors"),
        ("escape sequences", safetensors({"\x1b[2J": entry(0, 4, [1])}, bytes(4)), "no tensor is called '\\x1b[2J'"),
        ("endless name", safetensors({"a" * 10**6: entry(0, 4, [1])}, bytes(4)), "no tensor is called"),
        ("empty tensor", safetensors({"a": entry(0, 0, [0])}), "a has no elements"),
        ("NaN", save(state | {"body.0.bias": torch.full((1,), torch.nan)}), "body.0.bias holds NaN"),
        ("metadata of another network", save(state, {"architecture": "EDSR"}), "says EDSR"),
        ("metadata of another scale", save(state, {"scale": "2"}), "says scale = 2"),
        ("metadata that is no JSON", save(state, {"hyper_parameters": "\n"}), "not JSON"),
    ]


def misfits() -> list[tuple[str, bytes, str]]:
    """Return sound files of no network that can be built."""
    span = {"conv_cat.weight": torch.zeros(1, 4, 1, 1), "upsampler.0.weight": torch.zeros(4, 1, 3, 3)}
    wide = {"sk.weight": (1, 1, 1, 1), "conv.0.weight": (90_000, 1, 1, 1), "conv.1.weight": (1, 90_000, 3, 3)}
    branches = {f"block_1.c1_r.{key}": torch.zeros(shape) for key, shape in wide.items()}
    deep = {f"body.{n}.rdb1.conv1.bias": torch.zeros(1) for n in range(19_000)}
    return [
        ("nothing known", save({"fc.weight": torch.zeros(3, 3)}), "no known architecture; the nearest is "),
        (
            "a key missing",
            save({k: v for k, v in network("EDSR").items() if k != "conv_last.bias"}),
            "missing: conv_last.bias",
        ),
        ("a key too many", save(network("RRDBNet") | {"attention": torch.zeros(1)}), "left over: attention"),
        ("another shape", save(network("EDSR") | {"conv_after_body.bias": torch.zeros(7)}), "[7], expected [1]"),
        (
            "integers",
            save(network() | {"body.2.bias": torch.zeros(1, dtype=torch.int64)}),
            "body.2.bias is torch.int64",
        ),
        ("no scale", save(network("FSRCNN")), "does not hold its scale"),
        ("nineteen thousand blocks", save(network("RRDBNet") | deep), "512 at most"),
        ("branches that explode when folded", save(span | branches), "block_1.c1_r.sk.bias is missing"),
        (
            "a scale of thousands",
            save(network("ESPCN") | {"conv3.weight": torch.zeros(3 * 1000**2, 1, 1, 1)}),
            "no square",
        ),
    ]


def build(folder: Path) -> list[Attack]:
    """Write every file into `folder` and list (what it is, its path, what the refusal must say)."""
    attacks: list[Attack] = []

    def add(what: str, suffix: str, data: bytes, expected: str) -> None:
        path = folder / (what.replace(" ", "_").replace("*", "") + suffix)
        path.write_bytes(data)
        attacks.append((what + suffix, path, expected))

    for what, data, expected in pickles(folder / MARKER):
        add(what, ".pth", data, expected)
    for suffix, rows in ((".safetensors", headers()), (".misfit.safetensors", misfits())):
        for what, data, expected in rows:
            add(what, suffix, data, expected)
    for suffix in (".pth", ".safetensors", ".ckpt"):
        add("empty", suffix, b"", "is empty")
    add("text", ".pth", b"not a model at all\n", "no checkpoint by its content")
    add("text", ".safetensors", b"not a model at all\n", "damaged")
    add("an image", ".pt", b"\x89PNG\r\n\x1a\n" + bytes(64), "no checkpoint by its content")
    add("zeros", ".pth", bytes(4096), "no checkpoint by its content")
    return attacks + odd_files(folder)


def odd_files(folder: Path) -> list[Attack]:
    """Make what stands at a path and is no file to read: directories, pipes, devices, loops, giants."""
    pipe, loop, giant, device = (folder / name for name in ("pipe.pth", "loop.pth", "giant.pth", "device.pth"))
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    device.symlink_to("/dev/zero")
    with giant.open("wb") as file:
        file.truncate(1 << 40)
    return [
        ("missing", folder / "missing.pth", "no such file"),
        ("directory", folder, "a directory"),
        ("pipe", pipe, "a device, pipe or socket"),
        ("device", device, "a device, pipe or socket"),
        ("loop", loop, "can't be read"),
        ("terabyte", giant, "more than the"),
        ("endless name", folder / ("x" * 5000), "can't be read"),
        ("zero byte in the name", folder / "a\0b.pth", "no possible file name"),
    ]
