"""Checkpoints as users have them: files of tensors, read without running anything in them."""

import difflib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as read_tensors
from torch import Tensor, nn

from tilefuse.errors import ModelError
from tilefuse.export import archives
from tilefuse.export.architectures import build, infer
from tilefuse.export.descriptor import Descriptor

MAX_FILE_BYTES = 2 << 30
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
MAX_DEPTH = 8

# What training code saves a state dict under; averaged weights are the ones meant to be used.
WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "generator")
# The layers of the first ESRGAN are called model.0, model.1, ...: there `model.` is no prefix.
PREFIX = re.compile(r"(?:module|_orig_mod|generator|params_ema|params|state_dict|net_g|netG|net|model(?!\.\d))\.")

_WEIGHTS = Path(__file__).with_name("weights")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file (floating-point ones as fp32), the metadata of a safetensors header, the file's SHA-256."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    sha256: str


def load_state_dict(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a .safetensors, .pth, .pt or .ckpt file; what it holds is told from its content, and nothing in it runs.

    Wrappers (`params_ema`, `params`, `state_dict`, ...) and prefixes (`module.`) are taken off, fp16 and bf16 become
    fp32. Raises ModelError when the file can't be read, is damaged, or holds anything but finite tensors.
    """
    try:
        size = _size_of(path)
        metadata: dict[str, str] = {}
        with open(path, "rb") as file:
            start = file.read(16)
            file.seek(0)
            if start.startswith(b"PK\x03\x04"):
                archives.check_archive(file, size)
                found = _torch_load(path, file)
            # Asked before the pickle's \x80, which may as well be the lowest byte of a safetensors header's length.
            elif start[8:9] == b"{" or (Path(path).suffix.lower() == ".safetensors" and start[:1] != b"\x80"):
                _check_header(start, size)
                found, metadata = _safetensors_load(path)
            elif start.startswith(b"\x80"):
                archives.check_legacy(file)
                found = _torch_load(None, file)
            else:
                raise ModelError("no checkpoint by its content; expected what torch.save or safetensors writes")
            tensors = _checked(_unwrap(found), size)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{os.fspath(path)}: can't be read ({error.strerror or error})") from error
    except ModelError as error:
        raise ModelError(f"{os.fspath(path)}: {error}") from error
    return Checkpoint(tensors, metadata, digest)


def load_module(path: str | os.PathLike[str]) -> tuple[nn.Module, Descriptor]:
    """Reads a checkpoint and builds its network, in evaluation mode and without gradients; raises ModelError."""
    checkpoint = load_state_dict(path)
    try:
        descriptor = infer(checkpoint.tensors, checkpoint.metadata, name=Path(path).stem)
        return build(descriptor, checkpoint.tensors), descriptor
    except ModelError as error:
        raise ModelError(f"{os.fspath(path)}: {error}") from error


def bundled() -> dict[str, Path]:
    """Lists the checkpoints that come with the package: name to file, in order of names."""
    return {file.stem: file for file in sorted(_WEIGHTS.glob("*.safetensors"))}


def load_bundled(name: str) -> tuple[nn.Module, Descriptor]:
    """Builds the bundled network `name`; raises ModelError, naming the nearest, when there is none of that name."""
    files = bundled()
    if name not in files:
        nearest = difflib.get_close_matches(name, files, 1, 0.0)
        guess = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ModelError(f"no bundled model is called {name!r}; there are {', '.join(files) or 'none'}{guess}")
    return load_module(files[name])


def _size_of(path: str | os.PathLike[str]) -> int:
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise ModelError("no such file; give the path of a .safetensors, .pth, .pt or .ckpt file") from error
    except ValueError as error:
        raise ModelError(f"no possible file name ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise ModelError("a directory; give the path of a checkpoint file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ModelError("a device, pipe or socket; give the path of a regular file")
    if status.st_size == 0:
        raise ModelError("the file is empty; copy or download it again")
    if status.st_size > MAX_FILE_BYTES:
        raise ModelError(f"{status.st_size} bytes, more than the {MAX_FILE_BYTES} bytes any image generator takes")
    return status.st_size


def _torch_load(mappable: str | os.PathLike[str] | None, file: BinaryIO) -> Any:
    """Loads a checked file, by its name where that lets its storages be mapped and only the used ones read."""
    file.seek(0)
    try:
        # torch.load takes a name in .safetensors for a safetensors file, whatever it holds.
        if mappable is not None and not os.fspath(mappable).endswith(".safetensors"):
            return torch.load(mappable, map_location="cpu", weights_only=True, mmap=True)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails on a damaged file with whatever comes first
        reason = ascii(str(error).split("\n")[0])[1:-1]
        raise ModelError(f"damaged, or no plain state dict ({reason:.120}); copy or save it again") from error


def _check_header(start: bytes, size: int) -> None:
    length = int.from_bytes(start[:8], "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise ModelError(f"a damaged or truncated safetensors file: a header of {length} bytes in a file of {size}")


def _safetensors_load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        if not _is_utf8(path):
            data = Path(path).read_bytes()
            tensors = read_tensors(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return tensors, dict(header.get("__metadata__") or {})
        with safe_open(os.fspath(path), "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        reason = ascii(str(error).split("\n")[0])[1:-1]
        raise ModelError(f"a damaged or truncated safetensors file ({reason:.120}); copy it again") from error


def _is_utf8(path: str | os.PathLike[str]) -> bool:
    """Tells whether the library, which takes no other names, can open a path."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _unwrap(found: Any, depth: int = 0) -> dict[str, Tensor]:
    """Finds the state dict in what a file holds: in a known wrapper, at the top, or the only dict of tensors."""
    if not isinstance(found, Mapping) or depth > MAX_DEPTH:
        return {}
    for wrapper in WRAPPERS:
        if isinstance(found.get(wrapper), Mapping) and (inner := _unwrap(found[wrapper], depth + 1)):
            return inner
    tensors = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        dicts = [value for value in found.values() if _holds_tensors(value)]
        return _unwrap(dicts[0], depth + 1) if len(dicts) == 1 else {}
    while (match := PREFIX.match(next(iter(tensors)))) and all(key.startswith(match[0]) for key in tensors):
        tensors = {key.removeprefix(match[0]): tensor for key, tensor in tensors.items()}
    return tensors


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor) for inner in value.values())


def _checked(tensors: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """Copies the tensors out of the file as fp32, each checked; raises ModelError for one that no network can use."""
    if not tensors:
        raise ModelError("no tensors in it; expected a state dict")
    if len(tensors) > MAX_TENSORS:
        raise ModelError(f"{len(tensors)} tensors, more than the {MAX_TENSORS} of any image generator")
    # Each element takes a byte at least, unless one piece of the file is shown many times.
    if sum(tensor.numel() for tensor in tensors.values()) > size:
        raise ModelError(f"its tensors claim more elements than the file's {size} bytes can hold")
    return dict(_copies(tensors))


def _copies(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in tensors.items():
        if not key.isprintable() or len(key) > 200:
            raise ModelError(f"no tensor is called {ascii(key)[:80]}")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            raise ModelError(f"{key} is {tensor.dtype} in {tensor.layout} layout; expected plain real numbers")
        copy = tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        if not torch.isfinite(copy).all():
            raise ModelError(f"{key} holds NaN or infinite values; the file is damaged or its training diverged")
        yield key, copy
