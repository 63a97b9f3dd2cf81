"""Files as users have them: containers, wrappers, prefixes and precisions, read into one state dict."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.conftest import Compare
from tests.published import OldRRDBNet, PublishedSPAN, randomized
from tilefuse.errors import ModelError
from tilefuse.export import checkpoints
from tilefuse.export.architectures import ARCHITECTURES
from tilefuse.export.checkpoints import bundled, load_bundled, load_module, load_state_dict
from tilefuse.export.descriptor import Descriptor

Weights = dict[str, Tensor]
Save = Callable[[Any, Path], None]


def save_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


SAVES: list[Save] = [save_zip, save_legacy]


def compact() -> nn.Module:
    torch.manual_seed(0)
    return (
        next(a for a in ARCHITECTURES if a.name == "SRVGGNetCompact").module(num_feat=4, num_conv=2, upscale=2).eval()
    )


def weights_of(module: nn.Module) -> Weights:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def inputs_of(descriptor: Descriptor) -> list[Tensor]:
    # Networks that keep the size halve it on their way, and take multiples of a power of two.
    size = (3, 5) if descriptor.scale > 1 else (16, 24)
    shapes = descriptor.inputs.values() or [(descriptor.in_channels, *size)]
    return [torch.rand(1, *shape) for shape in shapes]


FAMILIES = [(a.name, a.module(**dict(a.example))) for a in ARCHITECTURES] + [
    ("RRDBNet", OldRRDBNet(3, 2, 1, 2, 2)),
    ("SPAN", PublishedSPAN(2, 2)),
]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".ckpt", ".legacy.pth"])
@pytest.mark.parametrize(("name", "module"), FAMILIES)
def test_every_family_from_every_container(
    name: str, module: nn.Module, suffix: str, tmp_path: Path, assert_close: Compare
) -> None:
    module = randomized(module)
    path = tmp_path / f"net_x2{suffix}"
    if suffix == ".safetensors":
        save_file(weights_of(module), path)
    else:
        (save_legacy if "legacy" in suffix else save_zip)(weights_of(module), path)
    loaded, descriptor = load_module(path)
    assert descriptor.architecture == name
    x = inputs_of(descriptor)
    expected = module(*x)
    assert_close(loaded(*x), expected, max_abs=2e-6 * max(1.0, expected.abs().max().item()))


WRAPPED: list[tuple[str, Callable[[Weights], Any]]] = [
    ("plain", lambda w: w),
    ("ordered", lambda w: OrderedDict(w)),
    ("parameters", lambda w: {key: nn.Parameter(value) for key, value in w.items()}),
    ("params", lambda w: {"params": w}),
    ("ema preferred", lambda w: {"params": {k: v + 1 for k, v in w.items()}, "params_ema": w}),
    ("empty ema", lambda w: {"params_ema": {}, "params": w}),
    (
        "training state",
        lambda w: {"epoch": 3, "state_dict": w, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "lr": 0.1}},
    ),
    ("scheduler", lambda w: {"model_state_dict": w, "milestones": Counter([10, 20])}),
    ("gan", lambda w: {"generator": w, "discriminator": {"conv.weight": torch.ones(3)}}),
    ("nested", lambda w: {"state_dict": {"params_ema": w}}),
    ("unknown wrapper", lambda w: {"weights": w, "epoch": 5}),
    ("parallel", lambda w: {"module." + key: value for key, value in w.items()}),
    ("compiled and parallel", lambda w: {"params": {"module._orig_mod." + key: value for key, value in w.items()}}),
    ("lightning", lambda w: {"state_dict": {"model." + key: value for key, value in w.items()}, "loops": {"a": [1]}}),
    ("flattened", lambda w: {"params_ema." + key: value for key, value in w.items()}),
    ("half", lambda w: {key: value.half().float() for key, value in w.items()}),
    ("numbers beside", lambda w: {**w, "iter": 5, "name": "x"}),
    ("shared storage", lambda w: {**w, "body.4.bias": w["body.2.bias"], "body.2.bias": w["body.2.bias"]}),
    ("strided", lambda w: {key: value.transpose(-1, 0).contiguous().transpose(-1, 0) for key, value in w.items()}),
]


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("wrap", [row[1] for row in WRAPPED], ids=[row[0] for row in WRAPPED])
def test_wrappers_are_taken_off(wrap: Callable[[Weights], Any], save: Save, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    weights = weights_of(compact())
    save(wrap(weights), path)
    checkpoint = load_state_dict(path)
    assert checkpoint.tensors.keys() == weights.keys()
    assert checkpoint.metadata == {}
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for key in weights:
        if key not in ("body.4.bias",):
            torch.testing.assert_close(checkpoint.tensors[key], weights[key], rtol=1e-3, atol=1e-3)
        assert checkpoint.tensors[key].is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = {key: value.to(dtype) for key, value in weights_of(compact()).items()}
    save_file(weights, tmp_path / "net.safetensors")
    for save in SAVES:
        save(weights, tmp_path / f"{save.__name__}.pth")
    for path in tmp_path.iterdir():
        tensors = load_state_dict(path).tensors
        assert all(torch.equal(tensors[key], value.float()) for key, value in weights.items()), path
        assert load_module(path)[1].scale == 2


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    weights = weights_of(compact())
    save_file(weights, tmp_path / "safetensors.pth")
    torch.save(weights, tmp_path / "zip.safetensors")
    torch.save(weights, tmp_path / "zip.bin")
    for path in tmp_path.iterdir():
        assert load_state_dict(str(path)).tensors.keys() == weights.keys()


def test_safetensors_metadata_is_kept(tmp_path: Path) -> None:
    metadata = {"architecture": "SRVGGNetCompact", "scale": "2", "hyper_parameters": json.dumps({"num_feat": 4})}
    save_file(weights_of(compact()), tmp_path / "net.safetensors", metadata)
    assert load_state_dict(tmp_path / "net.safetensors").metadata == metadata
    save_file(weights_of(compact()), tmp_path / "net.safetensors", metadata | {"scale": "3"})
    with pytest.raises(ModelError, match=r"net\.safetensors: the file's metadata says scale = 3"):
        load_module(tmp_path / "net.safetensors")


def test_loaded_weights_do_not_hang_on_the_file(tmp_path: Path) -> None:
    for suffix, save in ((".pth", save_zip), (".safetensors", save_file)):
        path = tmp_path / f"net{suffix}"
        save(weights_of(compact()), path)
        tensors = load_state_dict(path).tensors
        before = {key: value.clone() for key, value in tensors.items()}
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
        assert all(torch.equal(tensors[key], value) for key, value in before.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_names_the_first_tensor_that_is_not_finite(value: float, tmp_path: Path) -> None:
    weights = weights_of(compact())
    weights["body.2.weight"][0, 0, 1, 1] = value
    weights["body.4.bias"][0] = value
    torch.save(weights, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=r"body\.2\.weight holds NaN or infinite"):
        load_state_dict(tmp_path / "net.pth")


def test_truncation_at_any_offset_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net"
    for save in (save_zip, save_legacy, save_file):
        save(weights_of(compact()), path)
        whole = path.read_bytes()
        for end in [*range(0, 40), *range(40, len(whole), 211), len(whole) - 1]:
            path.write_bytes(whole[:end])
            with pytest.raises(ModelError) as raised:
                load_state_dict(path)
            assert "\n" not in str(raised.value)


def refusal_of(path: Path) -> str:
    try:
        load_module(path)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_file])
def test_damage_is_refused_or_harmless(save: Save, tmp_path: Path) -> None:
    path = tmp_path / "net"
    save(weights_of(compact()), path)
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 300)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        assert "\n" not in refusal_of(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_header_length_that_begins_like_a_pickle(suffix: str, tmp_path: Path) -> None:
    path, weights = tmp_path / f"net{suffix}", weights_of(compact())
    for padding in range(0, 256, 8):
        save_file(weights, path, metadata={"padding": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header of such a length")
    assert load_state_dict(path).tensors.keys() == weights.keys()


def test_a_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xff")
    folder.mkdir()
    weights, said = weights_of(compact()), {"architecture": "SRVGGNetCompact"}
    save_file(weights, tmp_path / "net.safetensors", metadata=said)
    data = (tmp_path / "net.safetensors").read_bytes()
    (folder / "net.safetensors").write_bytes(data)
    found = load_state_dict(folder / "net.safetensors")
    assert found.metadata == said
    assert found.tensors.keys() == weights.keys()
    assert all(torch.equal(found.tensors[key], weights[key]) for key in weights)
    for damaged in (data[:-9], data[:20], data.replace(b"F32", b"F99")):
        (folder / "net.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match="damaged or truncated"):
            load_state_dict(folder / "net.safetensors")


def test_bundled_lists_files_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_WEIGHTS", tmp_path)
    assert bundled() == {}
    with pytest.raises(ModelError, match="there are none"):
        load_bundled("espcn-x4")
    for name in ("espcn-x4", "compact-x2"):
        save_file(weights_of(compact()), tmp_path / f"{name}.safetensors")
    assert list(bundled()) == ["compact-x2", "espcn-x4"]
    assert load_bundled("compact-x2")[1].architecture == "SRVGGNetCompact"
    with pytest.raises(ModelError, match=r"'espcn4'; there are compact-x2, espcn-x4; did you mean espcn-x4\?"):
        load_bundled("espcn4")


def test_bundled_checkpoints_scale_as_their_names_say() -> None:
    for name in bundled():
        module, descriptor = load_bundled(name)
        if match := re.fullmatch(r".*-x(\d)", name):
            assert descriptor.scale == int(match[1])
            x = torch.rand(1, descriptor.in_channels, 5, 3)
            assert module(x).shape == (1, descriptor.out_channels, 5 * descriptor.scale, 3 * descriptor.scale)


def test_a_zip_of_other_things_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("net/readme.txt", "no weights here")
    with pytest.raises(ModelError, match=r"without data\.pkl"):
        load_state_dict(tmp_path / "net.pth")
