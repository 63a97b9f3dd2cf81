"""Images in and out: the names other rooms and users take from here."""

from __future__ import annotations

from tilefuse.image_reader import MAX_PIXELS, read_image
from tilefuse.image_writer import write_image
from tilefuse.outputs import check_output, output_format, replacing
from tilefuse.picture import Picture, picture_from_array, picture_from_pil, picture_to_array, picture_to_pil

__all__ = [
    "MAX_PIXELS",
    "Picture",
    "check_output",
    "output_format",
    "picture_from_array",
    "picture_from_pil",
    "picture_to_array",
    "picture_to_pil",
    "read_image",
    "replacing",
    "write_image",
]
