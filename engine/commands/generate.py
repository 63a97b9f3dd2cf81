"""`tilefuse generate`: images drawn from random latents, laid out on one sheet or strip."""

from __future__ import annotations

import re

import tilefuse
from tilefuse.errors import UsageError
from tilefuse.generation import contact_sheet
from tilefuse.images import check_output, picture_from_array, write_image


def generate_sheet(
    model: str,
    output: str,
    *,
    count: int,
    seed: int,
    label: int | None,
    interpolate: str | None,
    backend: str,
    overwrite: bool,
) -> None:
    """Draw and write: a near-square sheet, or with `interpolate` (A:B) a strip from one seed to the other.

    Raises:
        ModelError: the network takes no latent.
        UsageError: there is no such label, A:B are no seeds, or the output can't be written.
    """
    path = check_output(output, overwrite=overwrite)
    seeds = None if interpolate is None else parse_seeds(interpolate)
    engine = tilefuse.load(model, backend=backend)
    if seeds is None:
        sheet = contact_sheet(engine.generate(count, seed=seed, label=label))
    else:
        sheet = contact_sheet(engine.interpolate(*seeds, count, label=label), columns=count)
    write_image(path, picture_from_array(sheet), overwrite=overwrite)


def parse_seeds(text: str) -> tuple[int, int]:
    """Read A:B. Raises UsageError for anything but two whole numbers of up to 18 digits."""
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
    if match is None:
        raise UsageError(f"interpolate: {text!r} is none; give A:B, the seeds of the first and the last image")
    return int(match[1]), int(match[2])
