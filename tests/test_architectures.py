"""What is told from key names and shapes, and what is said where they fit nothing."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import Compare
from tests.published import OldRRDBNet, OriginalEDSR, PublishedSPAN, randomized
from tilefuse.errors import ModelError
from tilefuse.export.architectures import ARCHITECTURES, build, infer
from tilefuse.export.descriptor import MAX_BLOCKS

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
few = st.integers(1, 4)


def network(name: str, **hyperparameters: Any) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    drawn = {k: v if isinstance(v, st.SearchStrategy) else st.just(v) for k, v in hyperparameters.items()}
    return st.tuples(st.just(name), st.fixed_dictionaries(drawn))


# Every family over channels, widths, depths and scales.
FAMILIES = st.one_of(
    network(
        "ESPCN", scale=few, channels=st.sampled_from([1, 3, 4]), features=st.tuples(few, few), residual=st.booleans()
    ),
    few.flatmap(
        lambda c: network(
            "SRVGGNetCompact",
            num_in_ch=c,
            num_out_ch=c,
            num_feat=few,
            num_conv=st.integers(0, 5),
            upscale=few,
            act_type=st.sampled_from(["prelu", "relu", "leakyrelu"]),
        )
    ),
    st.sampled_from([(1, 0), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (4, 2)]).flatmap(
        lambda s: network(
            "RRDBNet",
            num_in_ch=3,
            num_out_ch=3,
            num_feat=few,
            num_block=few,
            num_grow_ch=few,
            unshuffle=s[0],
            num_upconv=s[1],
        )
    ),
    network(
        "SRResNet",
        in_channels=few,
        out_channels=few,
        channels=few,
        num_block=few,
        num_upsample=st.integers(0, 3),
        bias=st.booleans(),
        bounded=st.booleans(),
    ),
    few.flatmap(
        lambda c: network(
            "MSRResNet", num_in_ch=c, num_out_ch=c, num_feat=few, num_block=few, upscale=st.integers(2, 4)
        )
    ),
    network(
        "EDSR",
        num_feat=few,
        num_block=few,
        upscale=st.sampled_from([1, 2, 3, 4, 8]),
        res_scale=st.sampled_from([1.0, 0.1]),
        img_range=st.sampled_from([1.0, 255.0]),
    ),
    network("FSRCNN", scale=few, channels=st.sampled_from([1, 3]), d=few, s=few, m=st.integers(0, 4)),
    network("SPAN", feature_channels=few, upscale=few, norm=st.booleans()),
)


def metadata_of(name: str, hyperparameters: dict[str, Any]) -> dict[str, str]:
    return {"architecture": name, "hyper_parameters": json.dumps(hyperparameters)}


@pytest.mark.thorough
@settings(max_examples=100)
@given(family=FAMILIES)
def test_every_hyperparameter_is_inferred(family: tuple[str, dict[str, Any]]) -> None:
    name, hyperparameters = family
    module = randomized(BY_NAME[name].module(**hyperparameters))
    weights = module.state_dict()
    assert [a.name for a in ARCHITECTURES if a.detect(weights)] == [name]
    descriptor = infer(weights, metadata_of(name, hyperparameters))
    assert descriptor.architecture == name
    assert {key: descriptor.hyperparameters[key] for key in hyperparameters} == hyperparameters
    loaded = build(descriptor, weights)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    edge = 2 * hyperparameters.get("unshuffle", 1)
    x = torch.rand(1, descriptor.in_channels, edge, edge)
    with torch.no_grad():
        y = loaded(x)
        assert torch.equal(y, module(x))
    assert y.shape == (1, descriptor.out_channels, edge * descriptor.scale, edge * descriptor.scale)


def test_without_metadata_only_what_no_tensor_says_is_the_published_default() -> None:
    narrow, wide = (infer(OriginalEDSR(width, 1, [2]).state_dict()) for width in (64, 256))
    assert (narrow.hyperparameters["res_scale"], wide.hyperparameters["res_scale"]) == (1.0, 0.1)
    weights = BY_NAME["EDSR"].module(num_feat=2, num_block=1).state_dict()
    published = infer(weights).hyperparameters
    assert (published["img_range"], published["rgb_mean"]) == (255.0, (0.4488, 0.4371, 0.4040))
    assert infer(PublishedSPAN(2, 2, norm=False).state_dict()).hyperparameters["norm"] is False


def rrdb() -> dict[str, Tensor]:
    module = BY_NAME["RRDBNet"].module(num_feat=2, num_block=3, num_grow_ch=2)
    return dict(randomized(module).state_dict())


def test_old_and_new_names_of_rrdbnet_make_one_network(assert_close: Compare) -> None:
    old = randomized(OldRRDBNet(3, 4, 2, 3, 2)).state_dict()
    built = build(infer(old), old)
    new = built.state_dict()
    middle = {
        key.replace("body.", "RRDB_trunk.", key.startswith("body."))
        .replace(".rdb", ".RDB")
        .replace("conv_body", "trunk_conv")
        .replace("conv_up", "upconv")
        .replace("conv_hr", "HRconv"): value
        for key, value in new.items()
    }
    x = torch.rand(1, 3, 3, 5)
    for weights in (old, new, middle):
        assert infer(weights) == infer(old)
        assert_close(build(infer(weights), weights)(x), built(x), max_abs=0.0)
    with pytest.raises(ModelError, match="mixes naming schemes"):
        infer(old | new)


def test_older_names_of_msrresnet() -> None:
    new = BY_NAME["MSRResNet"].module(num_feat=2, num_block=2, upscale=3).state_dict()
    old = {key.replace("body.", "recon_trunk.").replace("conv_hr", "HRconv"): value for key, value in new.items()}
    assert infer(old) == infer(new)


BLOCK = [f"rdb{r}.conv{c}.{part}" for r in (1, 2, 3) for c in range(1, 6) for part in ("weight", "bias")]
DEEP = {f"body.{n}.rdb1.conv1.bias": [2] for n in range(3, MAX_BLOCKS + 2)}

CHANGES: list[tuple[str, dict[str, list[int] | None], str]] = [
    ("key taken away", {"conv_last.weight": None}, r"looks like RRDBNet, but conv_last\.weight is missing"),
    ("bias taken away", {"conv_hr.bias": None}, r"looks like RRDBNet; missing: conv_hr\.bias"),
    ("key added", {"extra.weight": [1]}, r"left over: extra\.weight"),
    ("block taken away", {f"body.1.{key}": None for key in BLOCK}, r"body\.1 is missing"),
    ("half a block", {f"body.1.rdb2.conv{c}.weight": None for c in range(1, 6)}, r"missing: .* and 2 more"),
    ("shape", {"conv_hr.weight": [2, 2, 5, 5]}, r"1 of its shapes .* is \[2, 2, 5, 5\], expected \[2, 2, 3, 3\]"),
    ("dimensions", {"conv_first.weight": [2, 3, 3]}, r"expected 4 dimensions"),
    ("empty", {"conv_hr.weight": [0, 2, 3, 3]}, r"conv_hr\.weight has no elements"),
    ("too deep", {**DEEP}, rf"{MAX_BLOCKS} at most"),
    ("far block", {"body.999999.rdb1.conv1.bias": [2]}, r"body\.3 is missing"),
    ("many stages", {f"conv_up{n}.weight": [2, 2, 3, 3] for n in range(3, 40)}, r"39 upscaling stages"),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_says_what_does_not_fit(change: dict[str, list[int] | None], message: str) -> None:
    weights = rrdb()
    for key, shape in change.items():
        if shape is None:
            del weights[key]
        else:
            weights[key] = torch.zeros(shape)
    with pytest.raises(ModelError, match=message) as raised:
        infer(weights)
    assert "\n" not in str(raised.value)


NEAREST = [
    ({"head.0.weight": [1], "body.0.body.0.body.0.weight": [1], "tail.1.weight": [1]}, "."),
    ({"block_1.c1_r.weight": [1], "block_1.c1_r.bias": [1], "conv_2.weight": [1]}, "SPAN"),
    ({"conv1.weight": [4, 1, 5, 5], "conv2.weight": [4, 4, 3, 3]}, "ESPCN"),
    ({"fc.weight": [3, 3]}, "."),
]


@pytest.mark.parametrize(("shapes", "nearest"), NEAREST)
def test_names_the_nearest_architecture(shapes: dict[str, list[int]], nearest: str) -> None:
    with pytest.raises(ModelError, match=f"the nearest is ({nearest}).*; missing: ") as raised:
        infer({key: torch.zeros(shape) for key, shape in shapes.items()})
    assert "pip install 'tilefuse[spandrel]'" in str(raised.value)


def test_other_layers_of_the_same_names_are_refused() -> None:
    srcnn = {
        "conv1.weight": [64, 1, 9, 9],
        "conv1.bias": [64],
        "conv2.weight": [32, 64, 5, 5],
        "conv2.bias": [32],
        "conv3.weight": [1, 32, 5, 5],
        "conv3.bias": [1],
    }
    with pytest.raises(ModelError, match=r"looks like ESPCN.*conv1\.weight is \[64, 1, 9, 9\]"):
        infer({key: torch.zeros(shape) for key, shape in srcnn.items()})


def test_integer_weights_are_refused() -> None:
    with pytest.raises(ModelError, match=r"conv_hr\.weight is torch\.int32"):
        infer(rrdb() | {"conv_hr.weight": torch.zeros(2, 2, 3, 3, dtype=torch.int32)})


def test_the_scale_of_fsrcnn_comes_from_metadata_or_the_name() -> None:
    weights = BY_NAME["FSRCNN"].module(scale=3, d=2, s=1, m=1).state_dict()
    for name in ("fsrcnn_x3", "3x-fsrcnn", "FSRCNN.X3", "x3"):
        assert infer(weights, name=name).scale == 3
    assert infer(weights, {"scale": "2"}, name="fsrcnn_x3").scale == 2
    for name in ("", "fsrcnn", "matrix3", "x3_to_x2", "x0"):
        with pytest.raises(ModelError, match="does not hold its scale"):
            infer(weights, name=name)


def test_compact_without_prelu_must_be_told_its_activation() -> None:
    weights = BY_NAME["SRVGGNetCompact"].module(num_feat=2, num_conv=2, act_type="relu").state_dict()
    with pytest.raises(ModelError, match="does not hold its activation"):
        infer(weights)


LIES = [
    ({"architecture": "EDSR"}, "says EDSR, but its tensors are of RRDBNet"),
    ({"scale": "2"}, "says scale = 2, but its tensors say scale = 4"),
    ({"hyper_parameters": '{"num_block": 23}'}, "says num_block = 23"),
    ({"hyper_parameters": '{"num_block": "3\\nx"}'}, r"says num_block = '3\\nx'"),
    ({"hyper_parameters": "["}, "is not JSON"),
    ({"hyper_parameters": "[" * 100_000}, "is not JSON"),
    ({"hyper_parameters": "[1]"}, "is a JSON list"),
]


@pytest.mark.parametrize(("metadata", "message"), LIES)
def test_metadata_that_lies_is_refused(metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        infer(rrdb(), metadata)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {"img_range": 0},
        {"img_range": -1},
        {"img_range": "255"},
        {"img_range": 10**400},
        {"img_range": float("nan")},
        {"rgb_mean": [1, 2]},
        {"rgb_mean": "abc"},
        {"rgb_mean": [10**400] * 3},
        {"res_scale": True},
    ],
)
def test_metadata_that_means_nothing_is_refused(hyperparameters: dict[str, Any]) -> None:
    weights = BY_NAME["EDSR"].module(num_feat=2, num_block=1).state_dict()
    with pytest.raises(ModelError, match=next(iter(hyperparameters))):
        infer(weights, {"hyper_parameters": json.dumps(hyperparameters)})


def test_a_mean_that_nobody_states_is_not_guessed() -> None:
    weights = BY_NAME["EDSR"].module(num_in_ch=1, num_out_ch=1, num_feat=2, num_block=1, rgb_mean=(0.5,)).state_dict()
    with pytest.raises(ModelError, match="rgb_mean of a network for 1 channels"):
        infer(weights)
    assert infer(weights, metadata_of("EDSR", {"rgb_mean": [0.5]})).hyperparameters["rgb_mean"] == (0.5,)


def test_metadata_of_other_tools_is_left_alone() -> None:
    foreign = {"architecture": "esrgan-v2", "scale": "four", "format": "pt", "hyper_parameters": '{"epochs": 4}'}
    assert infer(rrdb(), foreign) == infer(rrdb())


def test_weights_from_before_counters_load_without_them() -> None:
    module = randomized(BY_NAME["SRResNet"].module(channels=2, num_block=1))
    weights = {key: value for key, value in module.state_dict().items() if "num_batches" not in key}
    assert torch.equal(build(infer(weights), weights)(torch.ones(1, 3, 4, 4)), module(torch.ones(1, 3, 4, 4)))


class FakeDescriptor:
    """As much of spandrel's ImageModelDescriptor as is used."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.scale, self.input_channels, self.output_channels = model, 1, 2, 2
        self.architecture, self.tags = SimpleNamespace(id="Fake"), ["2nf"]


def fake_spandrel(monkeypatch: pytest.MonkeyPatch, result: Any) -> None:
    class Loader:
        def __init__(self, device: str) -> None:
            assert device == "cpu"

        def load_from_state_dict(self, tensors: dict[str, Tensor]) -> Any:
            value = result(tensors)
            tensors.clear()
            return value

    module = SimpleNamespace(ModelLoader=Loader, ImageModelDescriptor=FakeDescriptor)
    monkeypatch.setitem(sys.modules, "spandrel", module)


def test_spandrel_is_asked_for_what_is_not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(tensors: dict[str, Tensor]) -> FakeDescriptor:
        layer = nn.Conv2d(2, 2, 1)
        layer.load_state_dict({key.removeprefix("odd."): value for key, value in tensors.items()})
        return FakeDescriptor(layer.train())

    fake_spandrel(monkeypatch, load)
    weights = {"odd.weight": torch.ones(2, 2, 1, 1), "odd.bias": torch.zeros(2)}
    descriptor = infer(weights)
    assert (descriptor.architecture, descriptor.scale, descriptor.tags) == ("spandrel:Fake", 1, ("2nf",))
    module = build(descriptor, weights)
    assert not module.training
    assert not module.weight.requires_grad
    assert module(torch.ones(1, 2, 1, 1)).flatten().tolist() == [2.0, 2.0]
    assert infer(rrdb()).architecture == "RRDBNet"


def test_spandrel_may_fail_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: dict[str, Tensor]) -> Any:
        raise KeyError("x")

    fake_spandrel(monkeypatch, fail)
    with pytest.raises(ModelError, match=r"nearest is .*spandrel does not know it either \(KeyError\)"):
        infer({"odd.weight": torch.ones(2, 2)})
    fake_spandrel(monkeypatch, lambda tensors: SimpleNamespace(architecture=SimpleNamespace(id="Matte")))
    with pytest.raises(ModelError, match="Matte, which does not map one image to one image"):
        infer({"odd.weight": torch.ones(2, 2)})
