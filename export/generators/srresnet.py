"""SRResNet with batch norm (Ledig et al.), the generator of SRGAN, and MSRResNet, its modification without."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.errors import ModelError
from tilefuse.export.descriptor import (
    Architecture,
    Descriptor,
    Hints,
    MisfitError,
    Tensors,
    count_of,
    indices_of,
    rename,
    shape_of,
    stages_of,
)
from tilefuse.export.generators.edsr import ResidualBlock


class MSRResNet(nn.Module):
    """Upscales by 2, 3 or 4 over a bilinear base: [N, num_in_ch, H, W] -> [N, num_out_ch, upscale*H, upscale*W].

    The keys are those of BasicSR (`conv_first`, `body.0.conv1`, `upconv1`, ...).

    Source: the residual network of Ledig et al., CVPR 2017, without batch norm, as in Wang et al., "ESRGAN", 2018.
    """

    def __init__(
        self, num_in_ch: int = 3, num_out_ch: int = 3, num_feat: int = 64, num_block: int = 16, upscale: int = 4
    ) -> None:
        super().__init__()
        self.upscale = upscale
        factor = 2 if upscale == 4 else upscale
        self.factor = factor
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(num_feat) for _ in range(num_block)))
        self.upconv1 = nn.Conv2d(num_feat, num_feat * factor**2, 3, padding=1)
        if upscale == 4:
            self.upconv2 = nn.Conv2d(num_feat, num_feat * factor**2, 3, padding=1)
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Upscales a batch."""
        features = self.body(F.leaky_relu(self.conv_first(x), 0.1))
        features = F.leaky_relu(F.pixel_shuffle(self.upconv1(features), self.factor), 0.1)
        if self.upscale == 4:
            features = F.leaky_relu(F.pixel_shuffle(self.upconv2(features), self.factor), 0.1)
        residual: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.1))
        return residual + F.interpolate(x, scale_factor=float(self.upscale), mode="bilinear", align_corners=False)


class NormalizedBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a PReLU between, inside a residual: [N, F, H, W] -> the same shape."""

    def __init__(self, features: int, *, bias: bool) -> None:
        super().__init__()
        self.rcb = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1, bias=bias),
            nn.BatchNorm2d(features),
            nn.PReLU(),
            nn.Conv2d(features, features, 3, padding=1, bias=bias),
            nn.BatchNorm2d(features),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Adds the branch to x."""
        branch: Tensor = self.rcb(x)
        return x + branch


class UpsampleBlock(nn.Module):
    """A convolution, a pixel shuffle by 2 and a PReLU: [N, F, H, W] -> [N, F, 2*H, 2*W]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.upsample_block = nn.Sequential(
            nn.Conv2d(features, features * 4, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges features."""
        output: Tensor = self.upsample_block(x)
        return output


class SRResNet(nn.Module):
    """Upscales by 2**num_upsample with batch-normed residual blocks: [N, in, H, W] -> [N, out, scale*H, scale*W].

    The keys are those of Lornatang/SRGAN-PyTorch (`conv1.0`, `trunk.0.rcb.0`, `upsampling.0.upsample_block.0`,
    `conv3`), whose final clamp to 0..1 is left to the rounding of the image. With `bounded` the output is
    (tanh + 1) / 2, as in leftthomas/SRGAN.

    Source: Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network", 2017.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 64,
        num_block: int = 16,
        num_upsample: int = 2,
        *,
        bias: bool = False,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        self.bounded = bounded
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels, channels, 9, padding=4), nn.PReLU())
        self.trunk = nn.Sequential(*(NormalizedBlock(channels, bias=bias) for _ in range(num_block)))
        self.conv2 = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=bias), nn.BatchNorm2d(channels))
        self.upsampling = nn.Sequential(*(UpsampleBlock(channels) for _ in range(num_upsample)))
        self.conv3 = nn.Conv2d(channels, out_channels, 9, padding=4)

    def forward(self, x: Tensor) -> Tensor:
        """Upscales a batch."""
        shallow = self.conv1(x)
        features = shallow + self.conv2(self.trunk(shallow))
        output: Tensor = self.conv3(self.upsampling(features))
        return (torch.tanh(output) + 1) / 2 if self.bounded else output


def _detect_modified(tensors: Tensors) -> bool:
    return "upconv1.weight" in tensors and bool({"body.0.conv1.weight", "recon_trunk.0.conv1.weight"} & tensors.keys())


def _convert_modified(tensors: Tensors) -> Tensors:
    return rename(tensors, {r"recon_trunk\.": "body.", r"HRconv\.": "conv_hr."})


def _describe_modified(tensors: Tensors, _hints: Hints) -> Descriptor:
    features, in_channels = shape_of(tensors, "conv_first.weight")[:2]
    out_channels = shape_of(tensors, "conv_last.weight")[0]
    if out_channels != in_channels:
        raise MisfitError(f"{out_channels} output channels can't be added to the base of {in_channels} input channels")
    scale = stages_of(tensors, [key for key in ("upconv1.weight", "upconv2.weight") if key in tensors], features)
    if scale not in (2, 3, 4):
        raise MisfitError(f"upconv1 and upconv2 scale by {scale}, expected 2, 3 or 4")
    blocks = count_of(tensors, "body.")
    return Descriptor(
        "MSRResNet",
        {
            "num_in_ch": in_channels,
            "num_out_ch": out_channels,
            "num_feat": features,
            "num_block": blocks,
            "upscale": scale,
        },
        scale=scale,
        in_channels=in_channels,
        out_channels=out_channels,
        tags=(f"{features}nf", f"{blocks}nb"),
    )


def _detect(tensors: Tensors) -> bool:
    return "trunk.0.rcb.0.weight" in tensors or _is_numbered(tensors)


def _is_numbered(tensors: Tensors) -> bool:
    """Tells the naming of leftthomas/SRGAN, `block1` to `block8`, from the other."""
    return {"block1.0.weight", "block2.conv1.weight", "block2.bn1.weight"} <= tensors.keys()


def _convert(tensors: Tensors) -> Tensors:
    if not _is_numbered(tensors):
        return tensors
    last = indices_of(tensors, "block")[-1]
    rules = {
        r"block1\.([01])\.": r"conv1.\1.",
        rf"block{last}\.(\d+)\.conv\.": r"upsampling.\1.upsample_block.0.",
        rf"block{last}\.(\d+)\.prelu\.": r"upsampling.\1.upsample_block.2.",
        rf"block{last}\.\d+\.": "conv3.",
        rf"block{last - 1}\.([01])\.": r"conv2.\1.",
    }
    for block in range(2, last - 1):
        rules |= {
            rf"block{block}\.{part}\.": f"trunk.{block - 2}.rcb.{position}."
            for position, part in enumerate(("conv1", "bn1", "prelu", "conv2", "bn2"))
        }
    return rename(tensors, rules)


def _describe(tensors: Tensors, hints: Hints) -> Descriptor:
    features, in_channels = shape_of(tensors, "conv1.0.weight")[:2]
    out_channels = shape_of(tensors, "conv3.weight")[0]
    stages = count_of(tensors, "upsampling.")
    keys = [f"upsampling.{stage}.upsample_block.0.weight" for stage in range(stages)]
    scale = stages_of(tensors, keys, features)
    blocks = count_of(tensors, "trunk.")
    bias = "conv2.0.bias" in tensors
    # Only leftthomas/SRGAN has biases before batch norm, and only it ends in tanh.
    bounded = hints.get("bounded", bias)
    if not isinstance(bounded, bool):
        raise ModelError(f"bounded is {bounded!r:.80}, expected true or false")
    return Descriptor(
        "SRResNet",
        {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": features,
            "num_block": blocks,
            "num_upsample": stages,
            "bias": bias,
            "bounded": bounded,
        },
        scale=scale,
        in_channels=in_channels,
        out_channels=out_channels,
        tags=(f"{features}nf", f"{blocks}nb"),
    )


MODIFIED = Architecture(
    "MSRResNet",
    MSRResNet,
    _detect_modified,
    _describe_modified,
    _convert_modified,
    example={"num_feat": 1, "num_block": 1},
)
ARCHITECTURE = Architecture("SRResNet", SRResNet, _detect, _describe, _convert, example={"channels": 1, "num_block": 1})
