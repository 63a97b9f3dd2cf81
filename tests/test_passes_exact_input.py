"""The image as 0..255 for reduced precision: the same function, and fewer levels of error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests import vocabulary
from tests.conftest import Compare
from tests.models import build
from tilefuse.backends import registry
from tilefuse.capture import from_module
from tilefuse.errors import BackendError
from tilefuse.passes.exact_input import LEVELS, exact_byte_input
from tilefuse.sample import sample_picture
from tilefuse.source import load_model


@pytest.mark.parametrize("name", ["espcn", "espcn-residual", "compact", "rrdbnet", "rrdbnet-unshuffle", "shared"])
def test_same_function_of_255_times_the_image(name: str, assert_close: Compare) -> None:
    module, x = build(name)
    graph = from_module(module, x)
    rewritten = exact_byte_input(graph, torch.bfloat16)
    assert rewritten is not None
    assert_close(rewritten.evaluate(x * LEVELS)[0], graph.evaluate(x)[0], max_abs=2e-6, what=name)


def test_first_weights_are_two_numbers_of_the_precision() -> None:
    graph = vocabulary.compact()
    rewritten = exact_byte_input(graph, torch.bfloat16)
    assert rewritten is not None
    (name,) = (name for name in rewritten.weights if name.endswith("halves"))
    channels = graph.inputs[0].shape[1]
    high, rest = rewritten.weights[name].split(channels, 1)
    assert torch.equal(high, high.bfloat16().float())
    first = graph.weights[name.removesuffix(".halves")]
    assert ((high + rest.bfloat16().float()) * LEVELS - first).abs().max() <= first.abs().max() * 2**-15


def test_no_gain_is_no_rewriting() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(torch.tanh(x))

    assert exact_byte_input(from_module(Shifted(), torch.rand(1, 3, 8, 8)), torch.bfloat16) is None
    latent = from_module(nn.Linear(8, 4), torch.rand(2, 8))
    assert exact_byte_input(latent, torch.bfloat16) is None


def test_bf16_comes_closer_to_fp32() -> None:
    model = load_model("espcn-x4")
    pixels = torch.from_numpy(sample_picture(48, 64)).permute(2, 0, 1)[None]
    x = pixels.float() / LEVELS
    assert model.graph is not None
    expected = model.graph.evaluate(x)[0]
    # The backend rewrites the graph by itself.
    try:
        session = registry.get("openvino").compile(model, [tuple(x.shape)], device="cpu", precision="bf16", threads=1)
    except BackendError as reason:
        pytest.skip(str(reason))
    rounded = model.graph.to(dtype=torch.bfloat16).evaluate(x.bfloat16())[0].float()
    exact, plain = (
        float((result - expected).square().mean().sqrt()) * LEVELS for result in (session.run(x)[0], rounded)
    )
    print(f"rms levels: plain bf16 {plain:.3f}, with exact input {exact:.3f}")
    assert exact < 0.5 * plain
