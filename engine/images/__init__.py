"""Images in and out: the names other rooms and users take from here."""

from __future__ import annotations

from tilefuse.images.outputs import FORMATS, check_output, check_writable, output_format, replacing
from tilefuse.images.picture import Picture, picture_from_array, picture_from_pil, picture_to_array, picture_to_pil
from tilefuse.images.quiet import quiet_decoders
from tilefuse.images.reader import MAX_PIXELS, read_image
from tilefuse.images.transparency import bleed, keep_flat, varies
from tilefuse.images.writer import write_image

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "Picture",
    "bleed",
    "check_output",
    "check_writable",
    "keep_flat",
    "output_format",
    "picture_from_array",
    "picture_from_pil",
    "picture_to_array",
    "picture_to_pil",
    "quiet_decoders",
    "read_image",
    "replacing",
    "varies",
    "write_image",
]
