"""Half-precision windows that overflow: whatever would hide it, they are run again in fp32, and the report says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import tilefuse
from tests.test_cli import tilefuse as command

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")]


class Hidden(nn.Module):
    """The identity through a middle of up to 80000, a value by itself, and what would make a number of an infinity."""

    def __init__(self, ends: str) -> None:
        super().__init__()
        self.ends = ends
        self.loud, self.quiet = (nn.Conv2d(3, 3, 1, groups=3) for _ in range(2))
        for layer, number, bias in ((self.loud, 60000.0, 20000.0), (self.quiet, 1 / 60000, -1 / 3)):
            nn.init.constant_(layer.weight, number)
            nn.init.constant_(layer.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.loud(x)
        if self.ends == "pooled":
            x = F.max_pool2d(x, 3, 1, 1)
        x = self.quiet(x)
        return x.sigmoid() if self.ends == "sigmoid" else x.clamp(0, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("ends", ["clamp", "sigmoid", "pooled"])
def test_an_overflow_is_seen_behind_what_would_hide_it(ends: str, dtype: type) -> None:
    image = np.linspace(0, 255, 60).reshape(4, 5, 3).astype(dtype)
    picture = tilefuse.images.picture_from_array(image if dtype == np.uint8 else image / 255)
    results = list[np.ndarray[Any, Any]]()
    for precision, again in (("fp16", 1), ("fp32", 0)):
        engine = tilefuse.load(Hidden(ends).eval(), backend="triton_fused", precision=precision, tile=0)
        result, _, execution = engine.run_picture(picture)
        assert execution.rerun_fp32 == again
        results.append(tilefuse.images.picture_to_array(result, like=image))
    assert np.array_equal(*results)


@pytest.mark.parametrize(("precision", "told"), [("fp16", True), ("fp32", False)])
def test_a_run_of_files_says_what_was_run_again(precision: str, told: bool, tmp_path: Path) -> None:
    tilefuse.export.to_onnx(Hidden("clamp").eval(), tmp_path / "hidden.onnx")
    image = np.full((8, 16, 3), 50, np.uint8)
    image[:, 8:] = 200
    Image.fromarray(image).save(tmp_path / "in.png")
    given = (tmp_path / "in.png", "-m", tmp_path / "hidden.onnx", "-o", tmp_path / "out.png", "--tile", 8)
    result = command("run", *given, "--precision", precision, "--backend", "triton_fused")
    assert result.exit_code == 0
    line = "in.png: 1 of 2 windows gave values that are not finite in fp16 and were run again in fp32"
    assert (line in result.stderr) == told


class Heavy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1, groups=3)
        nn.init.constant_(self.layer.weight, 70000.0)
        nn.init.constant_(self.layer.bias, 0.5 - 7000.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).clamp(0, 1)


def test_a_weight_that_half_precision_can_not_hold_is_seen() -> None:
    engine = tilefuse.load(Heavy().eval(), backend="triton_fused", precision="fp16", tile=0)
    image = np.full((4, 5, 3), 0.1, np.float32)
    result, _, execution = engine.run_picture(tilefuse.images.picture_from_array(image))
    assert execution.rerun_fp32 == 1
    assert np.allclose(tilefuse.images.picture_to_array(result, like=image), 0.5)
