"""`tilefuse reconstruct`: an image through a variational autoencoder and back."""

from __future__ import annotations

import tilefuse
from tilefuse.images import check_output, picture_from_array, quiet_decoders, read_image, write_image


def reconstruct_file(model: str, source: str, output: str, *, backend: str, overwrite: bool) -> None:
    """Encode, draw again and write.

    Raises:
        ImageError: the input can't be read.
        ModelError: the model has no encoder.
        UsageError: the output can't be written.
    """
    path = check_output(output, overwrite=overwrite)
    with quiet_decoders():
        picture = read_image(source)
    drawn = tilefuse.load(model, backend=backend).reconstruct([picture])[0]
    write_image(path, picture_from_array(drawn), overwrite=overwrite)
