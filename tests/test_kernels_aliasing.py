"""Which tensors share memory, and that no kernel is launched on such."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tilefuse.errors import BackendError
from tilefuse.kernels.aliasing import overlaps, repeats
from tilefuse.kernels.chain import Inner, pack_chain, run_chain, scratch_elements
from tilefuse.kernels.conv2d import conv2d
from tilefuse.kernels.convolve import run_layer
from tilefuse.kernels.elementwise import Step, elementwise
from tilefuse.kernels.epilogue import Epilogue, Residual
from tilefuse.kernels.image_load import image_load
from tilefuse.kernels.image_store import image_store
from tilefuse.kernels.layer import pack_conv2d
from tilefuse.kernels.norm import norm, norm_statistics, scratch_shape
from tilefuse.kernels.pad import pad
from tilefuse.kernels.pixel_norm import pixel_norm
from tilefuse.kernels.pixel_shuffle import pixel_shuffle
from tilefuse.kernels.pixel_unshuffle import pixel_unshuffle
from tilefuse.kernels.pool import pool
from tilefuse.kernels.resize import resize

Drawn = tuple[list[int], list[int], int]
views = st.tuples(
    st.lists(st.integers(1, 3), min_size=2, max_size=2), st.lists(st.integers(0, 7), min_size=2, max_size=2),
    st.integers(0, 9),
)  # fmt: skip


def addresses(drawn: Drawn) -> list[int]:
    size, steps, start = drawn
    return [start + i * steps[0] + j * steps[1] for i, j in itertools.product(*map(range, size))]


@settings(max_examples=300, deadline=None)
@given(views, views)
def test_memory_that_is_shared_is_always_seen(first: Drawn, second: Drawn) -> None:
    memory = torch.zeros(64)
    a, b = (memory.as_strided(*drawn) for drawn in (first, second))
    assert overlaps(a, b) or not {*addresses(first)} & {*addresses(second)}
    assert overlaps(a, b) == overlaps(b, a)
    assert repeats(a) or len(addresses(first)) == len({*addresses(first)})


def test_parts_of_one_buffer_lie_apart() -> None:
    buffer = torch.zeros(2, 6, 8, 12)
    parts = [
        (buffer[..., :4], buffer[..., 4:]),
        (buffer[..., :4], buffer.view(torch.int32)[..., 5:9]),
        (buffer[:, :, :5], buffer[:, :, 5:]),
        (buffer[:, :, ::2], buffer[:, :, 1::2]),
        (buffer[:, :3], buffer[:, 3:]),
        (buffer[0], buffer[1]),
        (buffer, torch.zeros(2)),
        (buffer[:0], buffer),
    ]
    for a, b in parts:
        assert not overlaps(a, b)
    assert overlaps(buffer[..., :5], buffer[..., 4:])
    assert overlaps(buffer.view(torch.float16)[..., 8:10], buffer[..., 4:5])
    assert not any(
        map(repeats, (buffer, buffer[..., 1:3], buffer.permute(0, 3, 1, 2), buffer[:, :1].expand(-1, 1, -1, -1)))
    )
    assert repeats(buffer[:1].expand(2, -1, -1, -1))


M = torch.zeros(10_000)
X, SHIFTED = M[:192].view(1, 6, 8, 4), M[1:193].view(1, 6, 8, 4)
W, SAME = torch.zeros(4, 4, 3, 3), (1, 1, 1, 1)
ROWS, WEIGHTS = torch.zeros(1, 3, dtype=torch.int32), torch.ones(1, 3)
LAYER = pack_conv2d(W, padding=SAME)
CHAIN = pack_chain([Inner(LAYER)], LAYER)
SCRATCH = M[: scratch_elements(CHAIN, X.shape)]
OTHER = torch.zeros(1, 6, 8, 4)
FIRST = Epilogue(residuals=(Residual(SHIFTED),))
REFUSED: dict[str, Callable[[], Tensor | tuple[Tensor, ...]]] = {
    "out is memory of x": lambda: conv2d(X, W, padding=SAME, out=SHIFTED),
    "out is memory of epilogue.residuals.0.": lambda: conv2d(OTHER, W, padding=SAME, epilogue=FIRST, out=X),
    "out is memory of weight": lambda: run_layer(OTHER, replace(LAYER, weight=M[:144].view(1, 4, 36)), out=X),
    "out is of shape .* strides": lambda: conv2d(X, W, padding=SAME, out=torch.zeros(4).expand(1, 6, 8, 4)),
    "out is memory of x too": lambda: run_chain(X, CHAIN, out=SHIFTED),
    "scratch is memory of x": lambda: run_chain(X, CHAIN, scratch=SCRATCH),
    "out is memory of scratch": lambda: run_chain(OTHER, CHAIN, out=X, scratch=SCRATCH),
    "pad: out is memory of x": lambda: pad(X, (0, 0, 0, 0), out=X),
    "pool: out is memory of x": lambda: pool(X, "max", (1, 1), (1, 1), out=X),
    "resize: out is memory of x": lambda: resize(X, ROWS, WEIGHTS, ROWS, WEIGHTS, out=X[:, :3, :3]),
    "pixel_norm: out is memory of x": lambda: pixel_norm(X, out=SHIFTED),
    "pixel_shuffle: out is memory of x": lambda: pixel_shuffle(X, 1, out=X),
    "pixel_unshuffle: out is memory of x": lambda: pixel_unshuffle(X, 1, out=X),
    "image_load: out is memory of x": lambda: image_load(X, out=SHIFTED),
    "image_store: out is memory of x": lambda: image_store(X, out=M.view(torch.uint8)[:192].view(1, 6, 8, 4)),
    "elementwise: out is memory of input 1": lambda: elementwise((OTHER, X), (Step("add", 0, 1),), out=SHIFTED),
    "norm: out is memory of x": lambda: norm(X, 1, torch.ones(4), torch.zeros(4), out=SHIFTED),
    "norm: scratch is memory of x": lambda: norm_statistics(
        X, 1, scratch=M[: torch.Size(scratch_shape(1, 6, 8, 4)).numel()].view(scratch_shape(1, 6, 8, 4))
    ),
    "pad: out is of shape .* strides": lambda: pad(OTHER, (0, 0, 0, 0), out=torch.zeros(4).expand(1, 6, 8, 4)),
}  # fmt: skip


@pytest.mark.parametrize("named", REFUSED)
def test_memory_that_is_shared_is_refused_before_any_launch(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(*_: object) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr("tilefuse.kernels.launch.Launch.run", launched)
    with pytest.raises(BackendError, match=named + ".*accepted"):
        REFUSED[named]()


def test_a_chain_of_arithmetic_runs_in_place() -> None:
    x = torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2)
    assert elementwise((x, x), (Step("relu", 0), Step("add", 1, 2)), out=x) is x
    assert x.flatten().tolist() == [-1.0, 4.0]
