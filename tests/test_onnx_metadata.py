"""What an ONNX file says of its pixels, read back."""

from __future__ import annotations

import pytest

from tilefuse.errors import ModelError
from tilefuse.importers.onnx_metadata import value_range

onnx = pytest.importorskip("onnx")


def model_with(**entries: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, entries)
    return model


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({}, (0.0, 1.0)),
        ({"tilefuse.value_range": "-1,1"}, (-1.0, 1.0)),
        ({"tilefuse.value_range": "0,255", "Image.NominalPixelRange": "Normalized_1_1"}, (0.0, 255.0)),
        ({"image.nominalpixelrange": "NORMALIZED_1_1"}, (-1.0, 1.0)),
        ({"Image.NominalPixelRange": "NominalRange_16_235"}, (0.0, 1.0)),
    ],
)
def test_the_value_range_is_ours_or_that_of_the_standard(
    entries: dict[str, str], expected: tuple[float, float]
) -> None:
    assert value_range(model_with(**entries)) == expected


@pytest.mark.parametrize("text", ["", "1", "1,0", "nan,1", "0,inf", "a,b", "0,1,2", "0,0"])
def test_a_malformed_range_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="value_range"):
        value_range(model_with(**{"tilefuse.value_range": text}))
