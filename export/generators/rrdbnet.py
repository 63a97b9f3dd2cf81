"""RRDBNet, the generator of ESRGAN and Real-ESRGAN: residual in residual dense blocks."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.export.descriptor import (
    MAX_SCALE,
    Architecture,
    Descriptor,
    Hints,
    MisfitError,
    Tensors,
    count_of,
    indices_of,
    rename,
    shape_of,
)


class ResidualDenseBlock(nn.Module):
    """Five 3x3 convolutions, each seeing everything before it: [N, F, H, W] -> the same shape."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(features + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(features + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(features + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(features + 4 * growth, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Adds a fifth of the dense branch to x."""
        seen = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
        residual: Tensor = self.conv5(torch.cat(seen, 1))
        return x + 0.2 * residual


class RRDB(nn.Module):
    """Three residual dense blocks inside a residual."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(features, growth)
        self.rdb2 = ResidualDenseBlock(features, growth)
        self.rdb3 = ResidualDenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Adds a fifth of the branch to x."""
        residual: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return x + 0.2 * residual


class RRDBNet(nn.Module):
    """Upscales by 2**num_upconv / unshuffle: [N, num_in_ch, H, W] -> [N, num_out_ch, scale*H, scale*W].

    With `unshuffle` > 1 the input is pixel-unshuffled first (Real-ESRGAN x2 and x1); H and W must be multiples of it.
    The keys are those of BasicSR (`conv_first`, `body.0.rdb1.conv1`, `conv_up1`, ...).

    Source: Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", ECCV workshops 2018; the
    unshuffled variants: Wang et al., "Real-ESRGAN", ICCV workshops 2021.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 23,
        num_grow_ch: int = 32,
        num_upconv: int = 2,
        unshuffle: int = 1,
    ) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.num_upconv = num_upconv
        self.conv_first = nn.Conv2d(num_in_ch * unshuffle**2, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(num_feat, num_grow_ch) for _ in range(num_block)))
        self.conv_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        for stage in range(1, num_upconv + 1):
            self.add_module(f"conv_up{stage}", nn.Conv2d(num_feat, num_feat, 3, padding=1))
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Upscales a batch."""
        if self.unshuffle > 1:
            x = F.pixel_unshuffle(x, self.unshuffle)
        features = self.conv_first(x)
        features = features + self.conv_body(self.body(features))
        for stage in range(1, self.num_upconv + 1):
            enlarged = F.interpolate(features, scale_factor=2.0, mode="nearest")
            features = F.leaky_relu(self.get_submodule(f"conv_up{stage}")(enlarged), 0.2)
        output: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.2))
        return output


_DETECT = re.compile(r"(body|RRDB_trunk|model\.1\.sub)\.\d+\.(rdb|RDB)\d\.conv\d\.")

_RENAMES = {
    # mmsr, BSRGAN and RealSR
    r"RRDB_trunk\.(\d+)\.RDB(\d)\.": r"body.\1.rdb\2.",
    r"trunk_conv\.": "conv_body.",
    r"upconv(\d+)\.": r"conv_up\1.",
    r"HRconv\.": "conv_hr.",
    # the first ESRGAN, one nn.Sequential whose last entries depend on the number of upscaling stages
    r"model\.0\.": "conv_first.",
    r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.": r"body.\1.rdb\2.conv\3.",
    r"model\.1\.sub\.(\d+)\.(?=weight|bias)": "conv_body.",
}


def _detect(tensors: Tensors) -> bool:
    return any(_DETECT.match(key) for key in tensors)


def _convert(tensors: Tensors) -> Tensors:
    rules = dict(_RENAMES)
    tail = [index for index in indices_of(tensors, "model.") if index > 1]
    if len(tail) >= 2:
        *upconvs, hr, last = tail
        rules |= {rf"model\.{index}\.": f"conv_up{stage}." for stage, index in enumerate(upconvs, 1)}
        rules |= {rf"model\.{hr}\.": "conv_hr.", rf"model\.{last}\.": "conv_last."}
    return rename(tensors, rules)


def _describe(tensors: Tensors, _hints: Hints) -> Descriptor:
    features, seen_channels = shape_of(tensors, "conv_first.weight")[:2]
    out_channels = shape_of(tensors, "conv_last.weight")[0]
    growth = shape_of(tensors, "body.0.rdb1.conv1.weight")[0]
    stages = len(indices_of(tensors, "conv_up"))
    unshuffle = {out_channels * 4: 2, out_channels * 16: 4}.get(seen_channels, 1)
    if not unshuffle <= 2**stages <= MAX_SCALE * unshuffle:
        raise MisfitError(f"{stages} upscaling stages after an unshuffle by {unshuffle} are outside x1 to x{MAX_SCALE}")
    blocks = count_of(tensors, "body.")
    return Descriptor(
        "RRDBNet",
        {
            "num_in_ch": seen_channels // unshuffle**2,
            "num_out_ch": out_channels,
            "num_feat": features,
            "num_block": blocks,
            "num_grow_ch": growth,
            "num_upconv": stages,
            "unshuffle": unshuffle,
        },
        scale=2**stages // unshuffle,
        in_channels=seen_channels // unshuffle**2,
        out_channels=out_channels,
        tags=(f"{features}nf", f"{blocks}nb", *(("unshuffle",) if unshuffle > 1 else ())),
    )


ARCHITECTURE = Architecture(
    "RRDBNet", RRDBNet, _detect, _describe, _convert, example={"num_feat": 1, "num_block": 1, "num_grow_ch": 1}
)
