"""`tilefuse compress` and `tilefuse decompress`: images as small files of latents, and back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import click

from tilefuse.compression import (
    Compression,
    check_compressed,
    compress_file,
    decompress_file,
    load_codec,
    read_compressed,
)
from tilefuse.images import check_output, quiet_decoders
from tilefuse.images.outputs import shown


def compress_image(
    source: str, output: str, *, model: str, backend: str, memory: str | None, overwrite: bool, as_json: bool
) -> None:
    """Compress one image and tell its rate and PSNR."""
    check_compressed(output, overwrite=overwrite)
    codec = load_codec(model, backend=backend, memory=memory)
    with quiet_decoders():
        done = compress_file(codec, source, output, overwrite=overwrite)
    _tell(done, as_json)


def decompress_image(
    source: str, output: str, *, model: str, backend: str, memory: str | None, overwrite: bool, as_json: bool
) -> None:
    """Decode one file and tell its rate."""
    # What is wrong with the names or the file is told before the model is loaded.
    check_output(output, overwrite=overwrite)
    read_compressed(source)
    codec = load_codec(model, backend=backend, memory=memory)
    _tell(decompress_file(codec, source, output, overwrite=overwrite), as_json)


def _tell(done: Compression, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_fields(done)))
        return
    for note in done.notes:
        click.echo(shown(f"tilefuse: {done.input.name}: {note}"), err=True)
    quality = "" if done.psnr_db is None else f", PSNR {done.psnr_db:.2f} dB"
    click.echo(
        f"{shown(done.output)}: {done.width}x{done.height}, {done.file_bytes} bytes coded, "
        f"{done.bits_per_pixel:.3f} bits a pixel{quality}"
    )


def _fields(done: Compression) -> dict[str, Any]:
    # JSON has no infinity, which is the PSNR of an image that came back as it was.
    exact = done.psnr_db is not None and math.isinf(done.psnr_db)
    fields = asdict(done) | {"bits_per_pixel": done.bits_per_pixel, "exact": exact}
    return fields | {
        "input": str(done.input),
        "output": str(done.output),
        "psnr_db": None if exact else done.psnr_db,
    }
