"""What a file written by torch.save may hold: checked before torch.load sees it, so that a hostile file costs nothing.

torch.load(weights_only=True) runs no code, but it calls a few constructors that can be made to allocate without bound,
and it inflates compressed archives. A state dict needs neither.
"""

import io
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from tilefuse.errors import ModelError

MAX_PICKLE_BYTES = 16 << 20
MAX_DIRECTORY_BYTES = 16 << 20
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# A file of the format before torch 1.6: magic number, version, system, the state dict, the keys of its storages.
LEGACY_PICKLES = 5

_DTYPES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
}
_ALLOWED = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "torch.Size",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.storage.UntypedStorage",
        *(f"torch._utils.{name}" for name in ("_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2")),
        *(f"torch.{dtype}" for dtype in _DTYPES),
        *(f"torch.{name}Storage" for name in _DTYPES.values()),
    }
)


def check_archive(file: BinaryIO, size: int) -> None:
    """Raises ModelError unless the zip archive `file` of `size` bytes is a plain state dict written by torch.save."""
    if _directory_bytes(file, size) > MAX_DIRECTORY_BYTES:
        raise ModelError("the archive's directory is larger than that of any checkpoint")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
                raise ModelError(
                    "a TorchScript archive, which holds code; it was not run. "
                    "Load it with torch.jit.load where you trust it and save its state_dict() instead"
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ModelError("the archive is compressed, which torch.save never does")
            if sum(entry.file_size for entry in entries) > size:
                raise ModelError("the archive claims to hold more than its own size")
            pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
            if not any(entry.filename.endswith("/data.pkl") for entry in pickles):
                raise ModelError("a zip archive without data.pkl, so torch.save did not write it")
            for entry in pickles:
                if entry.file_size > MAX_PICKLE_BYTES:
                    raise ModelError(f"{entry.file_size} bytes of pickled objects, {MAX_PICKLE_BYTES} are the most")
                _check_pickle(io.BytesIO(archive.read(entry)))
    except (zipfile.BadZipFile, struct.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise ModelError(f"a damaged or truncated archive ({error})") from error


def check_legacy(file: BinaryIO) -> None:
    """Raises ModelError unless `file` starts like a state dict in the format of torch.save before version 1.6."""
    head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    first = _check_pickle(head)
    if LEGACY_MAGIC not in first:
        raise ModelError("a pickle that torch.save did not write; it was not run. Save the state dict with torch.save")
    for _ in range(LEGACY_PICKLES - 1):
        _check_pickle(head)


def _directory_bytes(file: BinaryIO, size: int) -> int:
    """Reads the size of a zip archive's central directory from its last record."""
    file.seek(max(0, size - (1 << 16) - 22 - 76))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0:
        raise ModelError("a damaged or truncated archive (its directory is missing)")
    try:
        directory: int = struct.unpack_from("<L", tail, end + 12)[0]
        if end >= 76 and tail[end - 20 : end - 16] == b"PK\x06\x07":
            directory = struct.unpack_from("<Q", tail, end - 76 + 40)[0]
    except struct.error as error:
        raise ModelError(f"a damaged or truncated archive ({error})") from error
    return directory


def _check_pickle(stream: io.BytesIO) -> list[object]:
    """Walks one pickle without loading it and returns its long integers; raises ModelError for objects but tensors."""
    numbers: list[object] = []
    texts: list[str] = []
    for name, argument in _operations(stream):
        if name == "PROTO" and argument != 2:
            raise ModelError(f"pickle protocol {argument}; torch.save writes 2 unless told otherwise, so save it again")
        if name == "STACK_GLOBAL":
            _refuse(".".join(texts[-2:]))
        if name in ("GLOBAL", "INST"):
            qualified = str(argument).replace(" ", ".", 1)
            if qualified not in _ALLOWED:
                _refuse(qualified)
        if isinstance(argument, str):
            texts = [*texts[-1:], argument]
        if name.startswith("LONG") and isinstance(argument, int):
            numbers.append(argument)
    return numbers


def _operations(stream: io.BytesIO) -> Iterator[tuple[str, object]]:
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            yield opcode.name, argument
    except (ValueError, OverflowError, IndexError, struct.error) as error:
        raise ModelError(f"a damaged or truncated pickle ({ascii(str(error))[1:-1]:.80})") from error


def _refuse(qualified: str) -> None:
    raise ModelError(
        f"it holds the object {ascii(qualified)[1:-1]:.80}, not only tensors; nothing in it was run. "
        "Ask for its state_dict() saved with torch.save or as .safetensors"
    )
