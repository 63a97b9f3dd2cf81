"""What an ONNX file says of itself beside its graph: keys that export writes and loading reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilefuse.errors import ModelError

if TYPE_CHECKING:
    import onnx

PREFIX = "tilefuse."
VALUE_RANGE = PREFIX + "value_range"
# ONNX's own key and values for pixels, in docs/MetadataProps.md of the standard.
PIXEL_RANGE = "Image.NominalPixelRange"
PIXEL_RANGES = {(0.0, 1.0): "Normalized_0_1", (-1.0, 1.0): "Normalized_1_1", (0.0, 255.0): "NominalRange_0_255"}


def value_range(model: onnx.ModelProto) -> tuple[float, float]:
    """Return what black and white are to a network: our own key, else ONNX's, else 0 and 1.

    Raises:
        ModelError: our key is there, but does not hold two numbers, the lower one first.
    """
    found = {entry.key.casefold(): entry.value for entry in model.metadata_props}
    own = found.get(VALUE_RANGE)
    if own is not None:
        try:
            low, high = (float(part) for part in own.split(","))
        except ValueError:
            low, high = 0.0, 0.0
        if not -1e6 < low < high < 1e6:
            raise ModelError(f"the file's metadata {VALUE_RANGE} is {own!r:.80}, expected two numbers as in '-1,1'")
        return low, high
    named = found.get(PIXEL_RANGE.casefold(), "").casefold()
    return next((pair for pair, name in PIXEL_RANGES.items() if name.casefold() == named), (0.0, 1.0))
