"""ESPCN: three convolutions at low resolution and a sub-pixel shuffle."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ESPCN(nn.Module):
    """Upscales [N, channels, H, W] to [N, channels, scale*H, scale*W] with 5-3-3 convolutions and a sub-pixel shuffle.

    With `residual=False` this is the published network: tanh after the first two convolutions; its keys are `conv1`,
    `conv2`, `conv3`. With `residual=True` the activations are PReLU (`prelu1`, `prelu2`), and the last convolution
    (`residual`) predicts what is added to the nearest enlargement of the input. The halo is 4 either way.

    Source: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
    Neural Network", CVPR 2016.
    """

    def __init__(
        self, scale: int, channels: int = 3, features: tuple[int, int] = (64, 32), *, residual: bool = False
    ) -> None:
        super().__init__()
        self.scale = scale
        self.conv1 = nn.Conv2d(channels, features[0], 5, padding=2)
        self.conv2 = nn.Conv2d(features[0], features[1], 3, padding=1)
        last = nn.Conv2d(features[1], channels * scale**2, 3, padding=1)
        if residual:
            self.prelu1 = nn.PReLU(features[0])
            self.prelu2 = nn.PReLU(features[1])
            self.residual = last
        else:
            self.conv3 = last
        self.has_residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Upscales a batch."""
        if not self.has_residual:
            features = torch.tanh(self.conv2(torch.tanh(self.conv1(x))))
            return F.pixel_shuffle(self.conv3(features), self.scale)
        features = self.prelu2(self.conv2(self.prelu1(self.conv1(x))))
        base = F.interpolate(x, scale_factor=float(self.scale), mode="nearest")
        return base + F.pixel_shuffle(self.residual(features), self.scale)
