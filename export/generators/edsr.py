"""EDSR: a deep residual network without batch norm."""

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
    count_of,
    indices_of,
    number_hint,
    rename,
    shape_of,
    stages_of,
)

# The mean colour of DIV2K, which both published EDSR and SPAN subtract.
DIV2K_MEAN = (0.4488, 0.4371, 0.4040)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between, inside a scaled residual: [N, F, H, W] -> the same shape."""

    def __init__(self, features: int, res_scale: float = 1.0) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the branch to x."""
        branch: Tensor = self.conv2(F.relu(self.conv1(x)))
        return x + (branch if self.res_scale == 1 else branch * self.res_scale)


class EDSR(nn.Module):
    """Upscales by `upscale` (3 or 2**n): [N, num_in_ch, H, W] in 0..1 -> [N, num_out_ch, upscale*H, upscale*W].

    The network works on (x - rgb_mean) * img_range. The keys are those of BasicSR (`conv_first`, `body.0.conv1`,
    `conv_after_body`, `upsample.0`, `conv_last`).

    Source: Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR workshops 2017.
    """

    mean: Tensor

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 16,
        upscale: int = 4,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        rgb_mean: tuple[float, ...] = DIV2K_MEAN,
    ) -> None:
        super().__init__()
        self.img_range = img_range
        # A constant of the network, not of the checkpoint: real even where the weights are made on the meta device.
        mean = torch.tensor(rgb_mean, device="cpu").reshape(1, -1, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(num_feat, res_scale) for _ in range(num_block)))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        factors = [3] if upscale == 3 else [2] * (upscale.bit_length() - 1)
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [nn.Conv2d(num_feat, num_feat * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        self.upsample = nn.Sequential(*layers)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Upscales a batch."""
        shallow = self.conv_first((x - self.mean) * self.img_range)
        features = shallow + self.conv_after_body(self.body(shallow))
        output: Tensor = self.conv_last(self.upsample(features))
        return output / self.img_range + self.mean


def _detect(tensors: Tensors) -> bool:
    published = {"conv_after_body.weight", "body.0.conv1.weight"} <= tensors.keys()
    return published or {"head.0.weight", "body.0.body.0.weight", "tail.1.weight"} <= tensors.keys()


def _convert(tensors: Tensors) -> Tensors:
    if "head.0.weight" not in tensors:
        return tensors
    after_body = indices_of(tensors, "body.")[-1]
    return rename(
        tensors,
        {
            r"head\.0\.": "conv_first.",
            r"body\.(\d+)\.body\.0\.": r"body.\1.conv1.",
            r"body\.(\d+)\.body\.2\.": r"body.\1.conv2.",
            rf"body\.{after_body}\.(?=weight|bias)": "conv_after_body.",
            r"tail\.0\.": "upsample.",
            r"tail\.1\.": "conv_last.",
        },
    )


def _mean_and_range(tensors: Tensors, hints: Hints, channels: int) -> tuple[tuple[float, ...], float]:
    """Reads the mean shift of the original EDSR (1x1 convolutions), or takes the published one."""
    if "sub_mean.bias" not in tensors:
        published = DIV2K_MEAN if channels == 3 else ()
        return channels_hint(hints, "rgb_mean", channels, published), number_hint(hints, "img_range", 255.0)
    (found,) = shape_of(tensors, "sub_mean.bias", 1)
    kernels = [shape_of(tensors, f"{side}_mean.weight") for side in ("sub", "add")]
    if (
        found != channels
        or kernels != [(channels, channels, 1, 1)] * 2
        or shape_of(tensors, "add_mean.bias", 1) != (found,)
    ):
        raise MisfitError(f"sub_mean and add_mean are not 1x1 convolutions of {channels} channels")
    shift = tensors["sub_mean.bias"].double()
    identity = torch.eye(channels, dtype=torch.float64).reshape(channels, channels, 1, 1)
    plain = all(torch.equal(tensors[f"{side}_mean.weight"].double(), identity) for side in ("sub", "add"))
    if not plain or not torch.equal(tensors["add_mean.bias"].double(), -shift):
        raise MisfitError("sub_mean and add_mean do more than shift by one mean, which no published EDSR does")
    largest = float(shift.abs().max())
    img_range = next((r for r in (1.0, 255.0, 65535.0) if largest <= r), None)
    if img_range is None:
        raise MisfitError(f"sub_mean shifts by {largest:g}, more than the range of a 16-bit image")
    return tuple(-float(value) / img_range for value in shift), img_range


def _describe(tensors: Tensors, hints: Hints) -> Descriptor:
    features, in_channels = shape_of(tensors, "conv_first.weight")[:2]
    out_channels = shape_of(tensors, "conv_last.weight")[0]
    if out_channels != in_channels:
        raise MisfitError(f"EDSR adds the mean of its {in_channels} input channels to {out_channels} output channels")
    stages = [f"upsample.{index}.weight" for index in indices_of(tensors, "upsample.")]
    scale = stages_of(tensors, stages, features)
    blocks = count_of(tensors, "body.")
    mean, img_range = _mean_and_range(tensors, hints, in_channels)
    # Not in the file: the published networks of 256 features use 0.1, those of 64 use 1.
    res_scale = number_hint(hints, "res_scale", 0.1 if features >= 256 else 1.0)
    return Descriptor(
        "EDSR",
        {
            "num_in_ch": in_channels,
            "num_out_ch": out_channels,
            "num_feat": features,
            "num_block": blocks,
            "upscale": scale,
            "res_scale": res_scale,
            "img_range": img_range,
            "rgb_mean": mean,
        },
        scale=scale,
        in_channels=in_channels,
        out_channels=out_channels,
        tags=(f"{features}nf", f"{blocks}nb", f"res_scale {res_scale:g}"),
    )


ARCHITECTURE = Architecture(
    "EDSR",
    EDSR,
    _detect,
    _describe,
    _convert,
    consumed=frozenset(f"{side}_mean.{part}" for side in ("sub", "add") for part in ("weight", "bias")),
    example={"num_feat": 1, "num_block": 1},
)
