"""`tilefuse generate`: images drawn from random latents, laid out on one sheet."""

from __future__ import annotations

import tilefuse
from tilefuse.generation import contact_sheet
from tilefuse.images import check_output, picture_from_array, write_image


def generate_sheet(
    model: str, output: str, *, count: int, seed: int, label: int | None, backend: str, overwrite: bool
) -> None:
    """Draw and write.

    Raises:
        ModelError: the network takes no latent.
        UsageError: there is no such label, or the output can't be written.
    """
    path = check_output(output, overwrite=overwrite)
    images = tilefuse.load(model, backend=backend).generate(count, seed=seed, label=label)
    write_image(path, picture_from_array(contact_sheet(images)), overwrite=overwrite)
