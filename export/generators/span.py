"""SPAN: swift parameter-free attention, evaluated with its re-parameterised convolutions folded to plain ones."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.export.descriptor import (
    Architecture,
    Descriptor,
    Hints,
    MisfitError,
    Tensors,
    channels_hint,
    number_hint,
    shape_of,
    shuffle_of,
)
from tilefuse.export.generators.edsr import DIV2K_MEAN


class SPAB(nn.Module):
    """Three 3x3 convolutions gated by an odd function of their own output: [N, F, H, W] -> the same shape, twice.

    Also returns the activated features of the first convolution, which the tail of the network uses.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(features, features, 3, padding=1)
        self.c2_r = nn.Conv2d(features, features, 3, padding=1)
        self.c3_r = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gates the residual by sigmoid - 1/2."""
        first = F.silu(self.c1_r(x))
        last = self.c3_r(F.silu(self.c2_r(first)))
        return (last + x) * (torch.sigmoid(last) - 0.5), first


class SPAN(nn.Module):
    """Upscales by `upscale`: [N, num_in_ch, H, W] in 0..1 -> [N, num_out_ch, upscale*H, upscale*W].

    With `norm` the network works on (x - rgb_mean) * img_range; the mean is not added back. The keys are the published
    ones (`conv_1`, `block_1.c1_r`, `conv_cat`, `conv_2`, `upsampler.0`), each folded convolution under its own name.

    Source: Wan et al., "Swift Parameter-free Attention Network for Efficient Super-Resolution", CVPR workshops 2024.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        feature_channels: int = 48,
        upscale: int = 4,
        *,
        norm: bool = True,
        img_range: float = 255.0,
        rgb_mean: tuple[float, ...] = DIV2K_MEAN,
    ) -> None:
        super().__init__()
        self.upscale = upscale
        self.norm = norm
        self.img_range = img_range
        if norm:
            # A constant of the network, not of the checkpoint: real even where the weights are made on the meta device.
            mean = torch.tensor(rgb_mean, device="cpu").reshape(1, -1, 1, 1)
            self.register_buffer("mean", mean, persistent=False)
        self.conv_1 = nn.Conv2d(num_in_ch, feature_channels, 3, padding=1)
        self.block_1 = SPAB(feature_channels)
        self.block_2 = SPAB(feature_channels)
        self.block_3 = SPAB(feature_channels)
        self.block_4 = SPAB(feature_channels)
        self.block_5 = SPAB(feature_channels)
        self.block_6 = SPAB(feature_channels)
        self.conv_cat = nn.Conv2d(feature_channels * 4, feature_channels, 1)
        self.conv_2 = nn.Conv2d(feature_channels, feature_channels, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(feature_channels, num_out_ch * upscale**2, 3, padding=1), nn.PixelShuffle(upscale)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Upscales a batch."""
        if self.norm:
            x = (x - self.mean) * self.img_range
        shallow = self.conv_1(x)
        first, _ = self.block_1(shallow)
        features = first
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            features, _ = block(features)
        features, inner = self.block_6(features)
        output: Tensor = self.upsampler(self.conv_cat(torch.cat([shallow, self.conv_2(features), first, inner], 1)))
        return output


def fold(tensors: Tensors, name: str) -> tuple[Tensor, Tensor]:
    """Folds the branches of the convolution `name` into the (weight, bias) of one 3x3 convolution, in double precision.

    The branches are `sk` (1x1) and `conv.0` (1x1), `conv.1` (3x3), `conv.2` (1x1) in a row; padding comes before the
    first of them, so the fold is exact at the border too. Raises MisfitError for the shapes of anything else.
    """
    out_channels, in_channels = shape_of(tensors, f"{name}.sk.weight")[:2]
    gain = shape_of(tensors, f"{name}.conv.0.weight")[0] // in_channels
    wide_in, wide_out = gain * in_channels, gain * out_channels
    # Equal gains also bound the products below by the size of what the file holds.
    expected = {
        "sk": (out_channels, in_channels, 1, 1),
        "conv.0": (wide_in, in_channels, 1, 1),
        "conv.1": (wide_out, wide_in, 3, 3),
        "conv.2": (out_channels, wide_out, 1, 1),
    }
    for part, shape in expected.items():
        if (
            shape_of(tensors, f"{name}.{part}.weight") != shape
            or shape_of(tensors, f"{name}.{part}.bias", 1) != shape[:1]
        ):
            raise MisfitError(
                f"{name}.{part} has not the shape {list(shape)} of a re-parameterised convolution's branch"
            )
    weights = {part: tensors[f"{name}.{part}.weight"].double() for part in expected}
    biases = {part: tensors[f"{name}.{part}.bias"].double() for part in expected}
    last = weights["conv.2"][:, :, 0, 0]
    inner = torch.einsum("bmyx,mi->biyx", weights["conv.1"], weights["conv.0"][:, :, 0, 0])
    weight = torch.einsum("ob,biyx->oiyx", last, inner)
    weight[:, :, 1, 1] += weights["sk"][:, :, 0, 0]
    bias = (
        last @ (weights["conv.1"].sum((2, 3)) @ biases["conv.0"] + biases["conv.1"]) + biases["conv.2"] + biases["sk"]
    )
    stored = tensors[f"{name}.sk.weight"].dtype
    return weight.to(stored), bias.to(stored)


_BRANCH = re.compile(r"(conv_[12]|block_\d+\.c[123]_r)\.(sk|conv\.[012]|eval_conv)\.(weight|bias)")


def _detect(tensors: Tensors) -> bool:
    return "conv_cat.weight" in tensors and any(key.startswith("block_1.c1_r.") for key in tensors)


def _convert(tensors: Tensors) -> Tensors:
    converted: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = _BRANCH.fullmatch(key)
        if match is None:
            converted[key] = tensor
            continue
        name = match[1]
        # In a training checkpoint `eval_conv` is as old as the last evaluation: where there are branches, they decide.
        if f"{name}.sk.weight" not in tensors:
            if match[2] != "eval_conv":
                raise MisfitError(f"{name}.sk.weight is missing")
            converted[f"{name}.{match[3]}"] = tensor
        elif f"{name}.weight" not in converted:
            converted[f"{name}.weight"], converted[f"{name}.bias"] = fold(tensors, name)
    return converted


def _describe(tensors: Tensors, hints: Hints) -> Descriptor:
    features, in_channels = shape_of(tensors, "conv_1.weight")[:2]
    scale, out_channels = shuffle_of(shape_of(tensors, "upsampler.0.weight")[0], in_channels)
    norm = "no_norm" not in tensors
    hyperparameters: dict[str, Any] = {
        "num_in_ch": in_channels,
        "num_out_ch": out_channels,
        "feature_channels": features,
        "upscale": scale,
        "norm": norm and hints.get("norm") is not False,
    }
    if hyperparameters["norm"]:
        published = DIV2K_MEAN if in_channels == 3 else ()
        hyperparameters["img_range"] = number_hint(hints, "img_range", 255.0)
        hyperparameters["rgb_mean"] = channels_hint(hints, "rgb_mean", in_channels, published)
    return Descriptor(
        "SPAN",
        hyperparameters,
        scale=scale,
        in_channels=in_channels,
        out_channels=out_channels,
        tags=(f"{features}nf", *(() if hyperparameters["norm"] else ("no norm",))),
    )


ARCHITECTURE = Architecture(
    "SPAN",
    SPAN,
    _detect,
    _describe,
    _convert,
    consumed=frozenset({"no_norm"}),
    example={"feature_channels": 1, "upscale": 2},
)
