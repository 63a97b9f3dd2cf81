"""Every operator is exported and compiled around: the launch is a node of torch's graph, and the result is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.conv_kernels import DEVICE, draw, weight
from tilefuse.kernels.chain import Inner, pack_chain, run_chain
from tilefuse.kernels.conv2d import conv2d
from tilefuse.kernels.conv_transpose2d import conv_transpose2d
from tilefuse.kernels.elementwise import Step, elementwise
from tilefuse.kernels.epilogue import Epilogue
from tilefuse.kernels.image_load import image_load
from tilefuse.kernels.image_store import image_store
from tilefuse.kernels.layer import pack_conv2d
from tilefuse.kernels.linear import linear
from tilefuse.kernels.norm import norm
from tilefuse.kernels.pad import pad
from tilefuse.kernels.pixel_norm import pixel_norm
from tilefuse.kernels.pixel_shuffle import pixel_shuffle
from tilefuse.kernels.pixel_unshuffle import pixel_unshuffle
from tilefuse.kernels.pool import pool
from tilefuse.kernels.resize import resize
from tilefuse.kernels.upsample_conv2d import upsample_conv2d

pytestmark = pytest.mark.thorough
SAME, TWO = (1, 1, 1, 1), (2, 2)
CHAIN = pack_chain(
    [Inner(pack_conv2d(weight(8, 4, 3, 3), padding=SAME), None, "relu")], pack_conv2d(weight(3, 8, 1, 1, seed=2))
)
ROWS, WEIGHTS = torch.tensor([[0, 2, 3]], dtype=torch.int32, device=DEVICE), torch.ones(1, 3, device=DEVICE)
KERNELS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "convolve": (
        lambda x, w, b: conv2d(x, w, padding=SAME, epilogue=Epilogue(b, "relu", shuffle=2)),
        (weight(8, 4, 3, 3), draw(8)),
    ),
    "conv_transpose2d": (lambda x, w: conv_transpose2d(x, w, stride=TWO, padding=SAME), (weight(4, 8, 4, 4),)),
    "upsample_conv2d": (lambda x, w: upsample_conv2d(x, w, scale=TWO, padding=SAME), (weight(8, 4, 3, 3),)),
    "linear": (linear, (weight(5, 4),)),
    "chain": (
        lambda x, w, v, last: run_chain(x, replace(CHAIN, weight=w, vectors=v, last=replace(CHAIN.last, weight=last))),
        (CHAIN.weight, CHAIN.vectors, CHAIN.last.weight),
    ),
    "elementwise": (lambda x: elementwise((x, x), (Step("relu"), Step("add", 1, 2))), ()),
    "norm_statistics": (lambda x, w, b: norm(x, 2, w, b), (draw(4), draw(4, seed=1))),
    "pad": (lambda x: pad(x, (1, 2, 3, 1), "replicate"), ()),
    "pool": (lambda x: pool(x, "max", TWO, TWO), ()),
    "resize": (lambda x, rows, weights: resize(x, rows, weights, rows, weights), (ROWS, WEIGHTS)),
    "pixel_norm": (pixel_norm, ()),
    "pixel_shuffle": (lambda x: pixel_shuffle(x, 2), ()),
    "pixel_unshuffle": (lambda x: pixel_unshuffle(x, 2), ()),
    "image_load": (lambda x: image_load(x, 0.5), ()),
    "image_store": (lambda x: image_store(x).float(), ()),
}


class Around(nn.Module):
    """Arithmetic of torch before and behind a kernel."""

    def __init__(self, kernel: Callable[..., Tensor], *tensors: Tensor) -> None:
        super().__init__()
        self.kernel = kernel
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"tensor{i}", tensor)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x + 1, *(tensor for _, tensor in self.named_buffers())) * 2


@pytest.mark.parametrize("name", KERNELS)
def test_it_is_exported_and_compiled_around(name: str) -> None:
    kernel, tensors = KERNELS[name]
    net, x = Around(kernel, *tensors), draw(1, 4, 6, 4)
    expected = net(x)
    program = torch.export.export(net, (x,))
    assert any("tilefuse" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), expected)
    torch._dynamo.reset()
    # The whole of it, launcher and all, is one graph.
    assert torch.equal(torch.compile(net, backend="aot_eager", fullgraph=True)(x), expected)
