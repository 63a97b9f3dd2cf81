"""Writes safetensors files whole or not at all, the same bytes for the same content."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors and the metadata of the header to a safetensors file at `path`."""
    # Cloned, because safetensors refuses two names that share memory.
    copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(_sorted_header(save(copies, metadata=dict(metadata))))
    os.replace(partial, path)


def _sorted_header(data: bytes) -> bytes:
    """Sorts the JSON header of a safetensors file, because the library's order of metadata differs from run to run."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]
