"""The feed-forward style transfer network: one style, any content."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.export.descriptor import (
    Architecture,
    Descriptor,
    Hints,
    MisfitError,
    Tensors,
    indices_of,
    number_hint,
    shape_of,
)

DOWN, UP = 3, 3
PUBLISHED_BLOCKS = 5
CHANNELS = 3


class ReflectedConv(nn.Module):
    """Convolves [N, inputs, H, W] with reflection padding, after enlarging it `upsample` times by repeating pixels."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, upsample: int = 1) -> None:
        super().__init__()
        self.upsample = upsample
        self.margin = kernel // 2
        self.conv2d = nn.Conv2d(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves a batch."""
        if self.upsample > 1:
            x = F.interpolate(x, scale_factor=float(self.upsample), mode="nearest")
        output: Tensor = self.conv2d(F.pad(x, [self.margin] * 4, mode="reflect"))
        return output


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each with instance norm, inside a residual: [N, F, H, W] -> the same shape."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = ReflectedConv(features, features, 3)
        self.in1 = nn.InstanceNorm2d(features, affine=True)
        self.conv2 = ReflectedConv(features, features, 3)
        self.in2 = nn.InstanceNorm2d(features, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the branch to x."""
        branch: Tensor = self.in2(self.conv2(F.relu(self.in1(self.conv1(x)))))
        return x + branch


class TransformerNet(nn.Module):
    """Redraws images [N, 3, H, W] in 0..1 in the style it was trained on; H and W are multiples of 4.

    `widths` are the channels at full, half and quarter resolution. The network works on image * img_range. The keys are
    those of PyTorch's fast_neural_style example (`conv1.conv2d`, `in1`, `res1.conv1.conv2d`, `deconv1.conv2d`), whose
    networks work on 0..255.

    Source: Johnson et al., "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016, with the
    instance norm of Ulyanov et al., 2016, and the enlargement of Odena et al., 2016.
    """

    def __init__(
        self,
        widths: tuple[int, int, int] = (32, 64, 128),
        blocks: int = PUBLISHED_BLOCKS,
        img_range: float = 255.0,
    ) -> None:
        super().__init__()
        full, half, quarter = widths
        self.img_range = img_range
        self.conv1 = ReflectedConv(CHANNELS, full, 9)
        self.in1 = nn.InstanceNorm2d(full, affine=True)
        self.conv2 = ReflectedConv(full, half, 3, stride=2)
        self.in2 = nn.InstanceNorm2d(half, affine=True)
        self.conv3 = ReflectedConv(half, quarter, 3, stride=2)
        self.in3 = nn.InstanceNorm2d(quarter, affine=True)
        self.blocks = blocks
        for block in range(1, blocks + 1):
            self.add_module(f"res{block}", ResidualBlock(quarter))
        self.deconv1 = ReflectedConv(quarter, half, 3, upsample=2)
        self.in4 = nn.InstanceNorm2d(half, affine=True)
        self.deconv2 = ReflectedConv(half, full, 3, upsample=2)
        self.in5 = nn.InstanceNorm2d(full, affine=True)
        self.deconv3 = ReflectedConv(full, CHANNELS, 9)

    def forward(self, x: Tensor) -> Tensor:
        """Redraws a batch."""
        x = F.relu(self.in1(self.conv1(x * self.img_range)))
        x = F.relu(self.in2(self.conv2(x)))
        x = F.relu(self.in3(self.conv3(x)))
        for block in range(1, self.blocks + 1):
            x = self.get_submodule(f"res{block}")(x)
        x = F.relu(self.in4(self.deconv1(x)))
        x = F.relu(self.in5(self.deconv2(x)))
        output: Tensor = self.deconv3(x)
        return output / self.img_range


def _detect(tensors: Tensors) -> bool:
    return {"conv1.conv2d.weight", "in1.weight", "deconv3.conv2d.weight"} <= tensors.keys()


def _convert(tensors: Tensors) -> Tensors:
    # The first PyTorch saved running statistics with instance norms, and never used them.
    return {key: tensor for key, tensor in tensors.items() if not key.endswith((".running_mean", ".running_var"))}


def _describe(tensors: Tensors, hints: Hints) -> Descriptor:
    widths = tuple(shape_of(tensors, f"conv{stage}.conv2d.weight")[0] for stage in range(1, DOWN + 1))
    channels = shape_of(tensors, "conv1.conv2d.weight")[1], shape_of(tensors, f"deconv{UP}.conv2d.weight")[0]
    if channels != (CHANNELS, CHANNELS):
        raise MisfitError(f"it takes {channels[0]} channels and gives {channels[1]}, expected {CHANNELS} each")
    blocks = len(indices_of(tensors, "res"))
    hyperparameters: dict[str, Any] = {
        "widths": widths,
        "blocks": blocks,
        "img_range": number_hint(hints, "img_range", 255.0),
    }
    return Descriptor(
        "TransformerNet",
        hyperparameters,
        scale=1,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        tags=("-".join(map(str, widths)) + "nf", f"{blocks}nb"),
    )


ARCHITECTURE = Architecture(
    "TransformerNet",
    TransformerNet,
    _detect,
    _describe,
    _convert,
    example={"widths": (1, 1, 1), "blocks": 1},
)
