"""Chains in one launch: right, the bits of any tile, nothing written beside the result, and when they are chosen."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.conv_kernels import DEVICE, assert_near, draw, weight
from tilefuse.backends.triton.lowering import lower
from tilefuse.capture import from_module
from tilefuse.errors import BackendError
from tilefuse.export.generators.espcn import ESPCN
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.kernels import chain_config
from tilefuse.kernels.chain import Inner, pack_chain, run_chain, run_chain_ref, scratch_elements
from tilefuse.kernels.chain_cases import CASES
from tilefuse.kernels.chain_config import MOST_SCRATCH_BYTES, PROGRAMS, Link, pays, pick_config
from tilefuse.kernels.conv2d import conv2d_ref
from tilefuse.kernels.epilogue import Epilogue, Residual
from tilefuse.kernels.image_load import image_load
from tilefuse.kernels.image_store import image_store
from tilefuse.kernels.layer import Layer, pack_conv2d, pack_conv_transpose2d
from tilefuse.kernels.toolchain import interpreted

HALF, FULL, BYTES = torch.float16, torch.float32, torch.uint8
SAME, WIDE = (1, 1, 1, 1), (2, 2, 2, 2)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few programs on small tiles, so that programs make several tiles of a small image in the interpreter."""
    monkeypatch.setattr(chain_config, "TILES", ((4, 8),))
    monkeypatch.setattr("tilefuse.kernels.chain.PROGRAMS", 3)


def espcn(dtype: torch.dtype, factor: int = 2, inputs: int = 3) -> tuple[list[Inner], Layer]:
    first = pack_conv2d(weight(20, inputs, 5, 5, dtype=dtype), padding=WIDE)
    second = pack_conv2d(weight(12, 20, 3, 3, dtype=dtype, seed=2), padding=SAME)
    inner = [Inner(first, draw(20, seed=3), "tanh"), Inner(second, None, "prelu", slopes=draw(12, seed=4))]
    return inner, pack_conv2d(weight(3 * factor**2, 12, 3, 3, dtype=dtype, seed=5), padding=SAME, shuffle=factor)


def fsrcnn(dtype: torch.dtype, factor: int = 2) -> tuple[list[Inner], Layer]:
    parts = [
        Inner(pack_conv2d(weight(8, 1, 5, 5, dtype=dtype), padding=WIDE), draw(8, seed=3), "relu"),
        Inner(pack_conv2d(weight(4, 8, 1, 1, dtype=dtype, seed=2)), draw(4, seed=4), "leaky_relu", 0.3),
        Inner(pack_conv2d(weight(4, 4, 3, 3, dtype=dtype, seed=5), padding=SAME, dilation=(1, 1))),
        Inner(pack_conv2d(weight(8, 4, 3, 3, dtype=dtype, seed=6), padding=WIDE, dilation=(2, 2)), None, "sigmoid"),
    ]
    last = weight(1, 8, 9, 9, dtype=dtype, seed=7).transpose(0, 1)
    return parts, pack_conv_transpose2d(
        last, stride=(factor, factor), padding=(4, 4, 4, 4), output_padding=(factor - 1, factor - 1)
    )  # fmt: skip


def image_end(dtype: torch.dtype) -> tuple[list[Inner], Layer]:
    """Sixteen features to three channels: the last layer makes four pixels as one."""
    inner = [Inner(pack_conv2d(weight(16, 16, 3, 3, dtype=dtype), padding=SAME), draw(16, seed=3), "silu")]
    return inner, pack_conv2d(weight(3, 16, 3, 3, dtype=dtype, seed=5), padding=SAME)


NETS = {"espcn": (espcn, 3, 4), "fsrcnn": (fsrcnn, 1, 9), "image": (image_end, 16, 2)}


@pytest.mark.parametrize("dtype", [HALF, FULL])
@pytest.mark.parametrize(("name", "size"), [("espcn", (2, 9)), ("fsrcnn", (1, 1)), ("image", (3, 17))])
def test_a_chain_is_its_layers_one_by_one(name: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    build, channels, _ = NETS[name]
    inner, last = build(dtype)
    x = draw(1, *size, channels, dtype=dtype)
    epilogue = Epilogue(bias=draw(last.channels, seed=8), activation="silu", shuffle=last.shuffle)
    assert_near(
        run_chain(x, pack_chain(inner, last), epilogue=epilogue), run_chain_ref(x, inner, last, epilogue=epilogue)
    )  # fmt: skip


def test_a_chain_is_what_torch_computes() -> None:
    """Against plain torch, layer by layer with their borders, not against kernels."""
    w = [weight(20, 3, 5, 5), weight(12, 20, 3, 3, seed=2), weight(12, 12, 3, 3, seed=5)]
    inner, last = espcn(FULL)
    x, bias = draw(1, 6, 11, 3), draw(12, seed=8)
    stages = [Epilogue(bias=inner[0].bias, activation="tanh"), Epilogue(activation="prelu", slopes=inner[1].slopes)]
    value = conv2d_ref(x, w[0], padding=WIDE, epilogue=stages[0])
    value = conv2d_ref(value, w[1], padding=SAME, epilogue=stages[1])
    epilogue = Epilogue(bias=bias, shuffle=2, low=-0.5, high=0.6, output_scale=2.0)
    expected = conv2d_ref(value, w[2], padding=SAME, epilogue=epilogue)
    assert_near(run_chain(x, pack_chain(inner, last), epilogue=epilogue), expected)


@pytest.mark.parametrize(("name", "dtype"), [("espcn", torch.uint8), ("fsrcnn", torch.uint16)])
def test_a_chain_of_pixels_gives_the_bits_of_a_load_a_chain_and_a_store(name: str, dtype: torch.dtype) -> None:
    build, channels, _ = NETS[name]
    inner, last = build(HALF)
    chain, full = pack_chain(inner, last), torch.iinfo(dtype).max
    x = draw(1, 4, 6, channels, dtype=dtype)
    flags = [torch.zeros(1, dtype=torch.int32, device=DEVICE) for _ in range(2)]
    epilogue = Epilogue(bias=draw(last.channels, seed=8), shuffle=last.shuffle)
    levels = replace(epilogue, out_dtype=dtype, levels=True, flag=flags[1])
    for flagged in (0, 1):
        floats = run_chain(image_load(x, 1 / full, HALF), chain, epilogue=epilogue)
        stored = image_store(floats, dtype, flag=flags[0])
        made = run_chain(x, chain, input_scale=1 / full, epilogue=levels)
        assert torch.equal(made.int(), stored.int())
        assert [flag.item() for flag in flags] == [flagged] * 2
        assert epilogue.bias is not None
        epilogue.bias[0] = torch.nan


@pytest.mark.thorough
@pytest.mark.parametrize("name", NETS)
def test_windows_and_batches_give_the_bits_of_the_whole(name: str) -> None:
    build, channels, halo = NETS[name]
    inner, last = build(HALF)
    chain, x = pack_chain(inner, last), draw(2, 3 + halo, 6 + halo, channels, dtype=HALF)
    epilogue = Epilogue(activation="tanh", shuffle=last.shuffle)
    whole = run_chain(x, chain, epilogue=epilogue)
    r = whole.shape[1] // x.shape[1]
    # Odd origins, in no relation to the tiles, from a batch of one that is not contiguous.
    part = run_chain(x[1:, 1:, 3:], chain, epilogue=epilogue)
    assert torch.equal(part[:, halo * r :, halo * r :], whole[1:, (1 + halo) * r :, (3 + halo) * r :])
    assert part[:, halo * r :, halo * r :].numel() > 0
    if name == "image":
        assert torch.equal(run_chain(x.flip(0), chain, epilogue=epilogue), whole.flip(0))


def test_nothing_of_an_earlier_launch_or_tile_is_read() -> None:
    inner, last = espcn(HALF)
    chain, x = pack_chain(inner, last), draw(1, 5, 18, 3, dtype=HALF)
    epilogue = Epilogue(shuffle=2)
    wanted = run_chain(x, chain, epilogue=epilogue)
    room = scratch_elements(chain, wanted.shape)
    scratch = torch.full((room + 64,), torch.nan, dtype=HALF, device=DEVICE)
    buffer = torch.full((1, 10, 36, 7), torch.nan, dtype=HALF, device=DEVICE)
    made = run_chain(x, chain, epilogue=replace(epilogue, channel_offset=2), out=buffer, scratch=scratch)
    assert torch.equal(made, wanted)
    assert buffer[..., :2].isnan().all()
    assert buffer[..., 5:].isnan().all()
    assert scratch[room:].isnan().all()


@pytest.mark.parametrize("size", [(3, 8), (2, 7)])
def test_bytes_come_in_and_go_out(size: tuple[int, int]) -> None:
    inner, last = espcn(HALF)
    x = draw(1, *size, 3, dtype=BYTES)
    base = draw(1, *size, 3, dtype=HALF, seed=9)
    epilogue = Epilogue(residuals=(Residual(base, 0.1, 1.0, 2),), shuffle=2, output_scale=255.0, out_dtype=BYTES)
    made = run_chain(x, pack_chain(inner, last), epilogue=epilogue)
    expected = run_chain_ref(x, inner, last, epilogue=epilogue)
    assert made.dtype == BYTES
    assert (made.int() - expected.int()).abs().max() <= 1
    assert made.float().std() > 20


def test_a_value_that_is_not_finite_is_seen_behind_a_chain() -> None:
    inner, last = image_end(HALF)
    x = draw(1, 4, 5, 16, dtype=HALF)
    x[0, 2, 2, 3] = math.inf
    made = run_chain(x, pack_chain(inner, last))
    assert not torch.isfinite(made).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_scratch_can_not_hold_becomes_no_number(sign: float) -> None:
    """70000 between two layers: an infinity would come out of the limit behind them as a number."""
    dtype, epilogue = torch.float16, Epilogue(low=0.0, high=1.0)
    inner = Inner(pack_conv2d(torch.full((1, 1, 1, 1), 350.0 * sign, dtype=dtype, device=DEVICE)))
    last = pack_conv2d(torch.full((1, 1, 1, 1), 1e-5, dtype=dtype, device=DEVICE))
    x = torch.tensor([100.0, 200.0], dtype=dtype, device=DEVICE).view(1, 1, 2, 1)
    made = run_chain(x, pack_chain([inner], last), epilogue=epilogue)
    assert made.isnan().flatten().tolist() == [False, True]


@pytest.mark.parametrize("edge", [1, 2])
def test_only_pixels_of_the_image_raise_the_flag(edge: int) -> None:
    """A tile's positions past the border would see the last row or column through a tap that no pixel has there."""
    x, w = torch.zeros(1, 3, 5, 8, dtype=HALF), torch.zeros(3, 8, 3, 3, dtype=HALF)
    x.select(edge, -1).fill_(100.0)
    w[:, :, edge - 1, 2 - edge] = 2000.0
    first = Inner(pack_conv2d(torch.eye(8, dtype=HALF)[:, :, None, None].to(DEVICE)))
    chain, flag = pack_chain([first], pack_conv2d(w.to(DEVICE), padding=SAME)), torch.zeros(1, dtype=torch.int32)
    epilogue = Epilogue(out_dtype=BYTES, levels=True, flag=flag.to(DEVICE))
    for image, raised in ((x, 0), (x.flip(edge), 1)):
        run_chain(image.to(DEVICE), chain, epilogue=epilogue)
        assert epilogue.flag is not None
        assert epilogue.flag.item() == raised


def test_no_images_give_no_images() -> None:
    inner, last = espcn(HALF)
    assert run_chain(draw(0, 5, 6, 3, dtype=HALF), pack_chain(inner, last), epilogue=Epilogue(shuffle=2)).shape == (
        0, 10, 12, 3,
    )  # fmt: skip


def test_the_operator_has_a_fake() -> None:
    inner, last = image_end(HALF)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        x = fake.from_tensor(draw(1, 3, 5, 16, dtype=HALF))
        made = run_chain(x, pack_chain(inner, last))
    assert isinstance(made, FakeTensor)
    assert made.shape == (1, 3, 5, 3)


def test_bad_input_is_named_before_any_launch() -> None:
    inner, last = espcn(HALF)
    chain, x = pack_chain(inner, last), draw(1, 4, 5, 3, dtype=HALF)
    shuffled = Epilogue(shuffle=2)
    with pytest.raises(BackendError, match="x is of 4 channels; accepted: 3"):
        run_chain(draw(1, 4, 5, 4, dtype=HALF), chain, epilogue=shuffled)
    with pytest.raises(BackendError, match=r"x is torch.float32; accepted: torch.float16"):
        run_chain(x.float(), chain, epilogue=shuffled)
    with pytest.raises(BackendError, match="x is of strides"):
        run_chain(x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), chain, epilogue=shuffled)
    with pytest.raises(BackendError, match="scratch is 4 elements"):
        run_chain(x, chain, epilogue=shuffled, scratch=draw(4, dtype=HALF))
    with pytest.raises(BackendError, match=r"epilogue.bias is .*; accepted: contiguous float tensor of 12"):
        run_chain(x, chain, epilogue=replace(shuffled, bias=draw(5)))
    with pytest.raises(BackendError, match="out is of shape"):
        run_chain(x, chain, epilogue=shuffled, out=draw(1, 4, 5, 3, dtype=HALF))
    with pytest.raises(BackendError, match="weight is on"):
        run_chain(x.to("meta"), chain, epilogue=shuffled)
    with pytest.raises(BackendError, match="layer 0 of a chain"):
        pack_chain([Inner(pack_conv2d(weight(20, 3, 5, 5)))], pack_conv2d(weight(4, 20, 3, 3)))
    with pytest.raises(BackendError, match=r"layer 1 of a chain is .*20 input channels"):
        pack_chain(inner[:1], last)
    with pytest.raises(BackendError, match="slopes is missing"):
        pack_chain([replace(inner[0], activation="prelu")], inner[1].layer)
    with pytest.raises(BackendError, match="inner is empty"):
        pack_chain([], last)
    if interpreted():
        rounded = [weight(*shape, dtype=torch.bfloat16) for shape in ((8, 3, 1, 1), (8, 8, 1, 1))]
        made = pack_chain([Inner(pack_conv2d(rounded[0]))], pack_conv2d(rounded[1]))
        with pytest.raises(BackendError, match="interpreter rounds wrongly"):
            run_chain(draw(1, 2, 2, 3, dtype=torch.bfloat16), made)


def layers(*widths: int, kernel: int = 3) -> list[Link]:
    empty = [torch.empty(b, a, kernel, kernel, device="meta") for a, b in pairwise(widths)]
    return [Link.of(pack_conv2d(w, padding=(kernel // 2,) * 4)) for w in empty]


def test_the_zoos_chains_pay_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for case in CASES:
        if case.network in ("espcn", "fsrcnn"):
            assert pays(case.chain(HALF).links, HALF), case
            assert not pays(case.chain(FULL).links, FULL)
    assert not pays(layers(3, 64), HALF)
    assert pays(layers(3, 16, 16), HALF)
    # Deep chains of large kernels compute borders again and again.
    assert not pays(layers(16, 16, 16, 16, 16, 16, 16, 16, kernel=9), HALF)
    assert not pays(layers(*[8] * 10, kernel=1), HALF)


def test_scratch_is_bounded_and_does_not_grow_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for case in CASES:
        chain = case.chain(HALF)
        for target in (80, 90, 100):
            config = pick_config(chain.links, HALF, target=target)
            assert config is not None
            assert config.scratch * 2 <= MOST_SCRATCH_BYTES
            assert config.tile == pick_config(chain.links, HALF).tile  # type: ignore[union-attr]
        large = scratch_elements(chain, (1, 4320, 7680, 3))
        assert large == PROGRAMS * config.scratch == scratch_elements(chain, (8, 4320, 7680, 3))
        assert scratch_elements(chain, (1, 1, 1, 3)) == config.scratch


def test_places_past_two_to_the_31_are_addressed() -> None:
    """Three images 2³⁰ and more bytes apart: address space, of which a few pages are ever touched."""
    inner, last = espcn(HALF)
    chain, step = pack_chain(inner, last), 2**30 + 64
    far_in, far_out = (torch.empty(2 * step + 4096, dtype=BYTES, device=DEVICE) for _ in range(2))
    x, out = far_in.as_strided((3, 2, 2, 3), (step, 6, 3, 1)), far_out.as_strided((3, 4, 4, 3), (step, 12, 3, 1))
    near = draw(3, 2, 2, 3, dtype=BYTES)
    x.copy_(near)
    epilogue = Epilogue(shuffle=2, output_scale=90.0, output_shift=100.0, out_dtype=BYTES)
    run_chain(x, chain, epilogue=epilogue, out=out)
    assert torch.equal(out, run_chain(near, chain, epilogue=epilogue))
    assert out.float().std() > 10


@pytest.mark.thorough
@pytest.mark.parametrize("net", [ESPCN(2), ESPCN(4, residual=True), FSRCNN(3)], ids=["espcn", "residual", "fsrcnn"])
def test_what_the_lowering_joins_is_what_the_gate_compiles(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published network in half precision is one launch, whose configuration the gate knows; in single it is not."""
    monkeypatch.undo()
    shape = (1, 1 if isinstance(net, FSRCNN) else 3, 32, 32)
    with torch.no_grad():
        graph = from_module(net.eval(), torch.rand(shape))
    (call,) = lower(graph, [shape], HALF).calls
    assert call.kernel == "chain"
    compiled = {str(pick_config(case.chain(HALF).links, HALF)) for case in CASES}
    assert str(pick_config(call.operation.chain.links, HALF)) in compiled  # type: ignore[attr-defined]
    assert "chain" not in [call.kernel for call in lower(graph, [shape], FULL).calls]
