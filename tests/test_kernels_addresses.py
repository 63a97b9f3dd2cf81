"""Every kernel touches its own tensors alone, writes each place once, and shares no scratch without a barrier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpreterBuilder

from tests.conv_kernels import draw, weight
from tests.guarding import guarded
from tilefuse.backends.triton.tables import resize_tables
from tilefuse.kernels import chain_config
from tilefuse.kernels.chain import Inner, pack_chain, run_chain
from tilefuse.kernels.conv2d import conv2d
from tilefuse.kernels.conv_transpose2d import conv_transpose2d
from tilefuse.kernels.elementwise import Step, elementwise
from tilefuse.kernels.epilogue import Epilogue, Prologue, Residual
from tilefuse.kernels.image_load import image_load
from tilefuse.kernels.image_store import image_store
from tilefuse.kernels.launch import Launch
from tilefuse.kernels.layer import pack_conv2d
from tilefuse.kernels.norm import norm
from tilefuse.kernels.pad import pad
from tilefuse.kernels.pixel_norm import pixel_norm
from tilefuse.kernels.pixel_shuffle import pixel_shuffle
from tilefuse.kernels.pixel_unshuffle import pixel_unshuffle
from tilefuse.kernels.pool import pool
from tilefuse.kernels.resize import resize
from tilefuse.kernels.tensors import INTERPRETED
from tilefuse.kernels.upsample_conv2d import upsample_conv2d
from tilefuse.ops import Resize

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not INTERPRETED, reason="the sanitiser is one of Triton's interpreter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),
]

HALF, BYTES = torch.float16, torch.uint8
SAME = (1, 1, 1, 1)
X = draw(2, 3, 5, 7)


def chained() -> None:
    """Three layers on tiles of which a program makes several."""
    inner = [
        Inner(pack_conv2d(weight(20, 3, 3, 3), padding=SAME), draw(20, seed=3), "prelu", slopes=draw(20, seed=4)),
        Inner(pack_conv2d(weight(8, 20, 1, 1, seed=2)), draw(8, seed=5), "tanh"),
    ]
    last = pack_conv2d(weight(12, 8, 3, 3, seed=6), padding=SAME, shuffle=2)
    epilogue = Epilogue(bias=draw(12, seed=7), shuffle=2, residuals=(Residual(draw(2, 5, 19, 3), upsample=2),))
    run_chain(draw(2, 5, 19, 3), pack_chain(inner, last), epilogue=epilogue)


def resized() -> None:
    tables = resize_tables(Resize("cubic", (Fraction(3, 2), Fraction(2))), 3, 5)
    resize(X, *tables)


def convolved(inputs: int, outputs: int, dtype: torch.dtype = torch.float32, **options: object) -> None:
    groups = options.get("groups", 1)
    epilogue = Epilogue(bias=draw(outputs, seed=3), activation="prelu", slopes=draw(outputs, seed=4))
    w = weight(outputs, inputs // groups, 3, 3, dtype=dtype)  # type: ignore[operator]
    conv2d(draw(2, 3, 5, inputs, dtype=dtype), w, padding=SAME, epilogue=epilogue, **options)  # type: ignore[arg-type]


def normalised() -> None:
    prologue = Prologue(scale=draw(2, 6, seed=5), shift=draw(2, 6, seed=6), activation="relu")
    conv2d(draw(2, 3, 5, 6, dtype=BYTES), weight(10, 3, 3, 3), padding=SAME, groups=2, prologue=prologue)


def stored(outputs: int, shuffle: int, width: int) -> None:
    """Pixels in words, with a flag where grid positions fill the image."""
    flag = torch.zeros(1, dtype=torch.int32) if shuffle > 1 else None
    epilogue = Epilogue(bias=draw(outputs, seed=3), shuffle=shuffle, out_dtype=BYTES, levels=True, flag=flag)
    conv2d(draw(1, 3, width, 20, dtype=HALF), weight(outputs, 20, 3, 3, dtype=HALF), padding=SAME, epilogue=epilogue)


KERNELS: dict[str, Callable[[], object]] = {
    "flat": lambda: convolved(3, 20),
    "rows past a block": lambda: convolved(20, 17),
    "widened": lambda: convolved(16, 3),
    "groups": lambda: convolved(24, 10, groups=2),
    "strides": lambda: convolved(16, 7, stride=(2, 3)),
    "depthwise": lambda: convolved(70, 70, groups=70),
    "tiles, pixels first": lambda: convolved(24, 20, HALF),
    "tiles, channels first": lambda: convolved(16, 48, HALF),
    "tiles, dilated": lambda: convolved(16, 20, HALF, dilation=(1, 2)),
    "a normalisation of groups": normalised,
    "bytes of a shuffle by 2": lambda: stored(12, 2, 6),
    "bytes of a shuffle by 3": lambda: stored(27, 3, 5),
    "bytes of an image": lambda: stored(3, 1, 8),
    "bytes of an odd image": lambda: stored(3, 1, 7),
    "enlarged": lambda: upsample_conv2d(draw(1, 3, 5, 32), weight(20, 32, 3, 3), scale=(2, 2), padding=SAME),
    "enlarged tiles": lambda: upsample_conv2d(
        draw(1, 3, 5, 32, dtype=HALF), weight(20, 32, 3, 3, dtype=HALF), scale=(2, 2), padding=SAME
    ),
    "transposed": lambda: conv_transpose2d(
        draw(1, 3, 5, 20), weight(20, 6, 4, 4), stride=(2, 2), padding=SAME, output_padding=(1, 0)
    ),
    "chain": chained,
    "elementwise": lambda: elementwise((X, draw(7, seed=2).view(1, 1, 1, 7)), (Step("prelu", 0, 1),)),
    "norm": lambda: norm(draw(1, 40, 60, 6), 2, draw(6, seed=2), draw(6, seed=3)),
    "pixel norm": lambda: pixel_norm(X),
    "pad": lambda: [pad(X, (2, 1, 0, -1), mode) for mode in ("constant", "reflect", "replicate", "circular")],
    "pool": lambda: [pool(X, kind, (2, 3), (2, 2), (1, 1, 0, 1)) for kind in ("max", "avg")],
    "pixel shuffle": lambda: pixel_shuffle(draw(1, 3, 5, 12), 2),
    "pixel unshuffle": lambda: pixel_unshuffle(draw(1, 4, 6, 3), 2),
    "resize": resized,
    "image load": lambda: image_load(draw(1, 3, 5, 3, dtype=BYTES), 1 / 255),
    "image store": lambda: [image_store(draw(1, 3, 5, 3), kind) for kind in (BYTES, torch.uint16)],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs on small tiles, so that programs of a chain make several tiles of a small image."""
    monkeypatch.setattr(chain_config, "TILES", ((4, 8),))
    monkeypatch.setattr("tilefuse.kernels.chain.PROGRAMS", 3)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_kernel_stays_in_its_tensors(kernel: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded(monkeypatch) as launched:
        kernel()
    assert launched


SPOILT = {
    "reads 35 places outside": (lambda: pad(X, (0, 0, 0, 0)), "all_rows", lambda rows: rows + 1),
    "writes 105 places outside": (lambda: pad(X, (0, 0, 0, 0)), "out_ptr", lambda out: out[:1]),
    "writes a place of out_ptr twice": (lambda: pad(X, (0, 0, 0, 0)), "oh", lambda _: 0),
    "writes a place of scratch_ptr twice": (chained, "SCRATCH", lambda _: 0),
}


@pytest.mark.parametrize("told", SPOILT)
def test_the_sanitiser_sees_a_launch_of_wrong_arguments(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, name, change = SPOILT[told]
    with guarded(monkeypatch), monkeypatch.context() as patch:
        run = Launch.run
        patch.setattr(
            Launch,
            "run",
            lambda self: run(replace(self, arguments={**self.arguments, name: change(self.arguments[name])})),
        )
        with pytest.raises(InterpreterError, match=told):
            kernel()


def test_the_sanitiser_sees_a_missing_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded(monkeypatch), monkeypatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_barrier", lambda _: None)
        with pytest.raises(InterpreterError, match="reads scratch before a barrier"):
            chained()
