"""Convolutional discriminators."""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2


class ConvTrunk(nn.Module):
    """Turns images [N, channels, size, size] into features [N, outputs] with `stages` 4x4 convolutions of stride 2.

    The widths double from `features`; leaky ReLU follows each. DCGAN's batch norm is left away, because gradient
    penalties, which keep the training stable instead, need each image scored alone; so does spectral normalisation.

    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.
    """

    def __init__(self, channels: int, size: int, features: int, stages: int, *, spectral: bool = False) -> None:
        super().__init__()
        widths = [channels, *(features * 2**stage for stage in range(stages))]
        convs = [nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise(widths)]
        self.convs = nn.ModuleList(spectral_norm(conv) if spectral else conv for conv in convs)
        self.outputs = widths[-1] * (size // 2**stages) ** 2

    def forward(self, image: Tensor) -> Tensor:
        """Gives the features of a batch."""
        for conv in self.convs:
            image = F.leaky_relu(conv(image), SLOPE)
        return image.flatten(1)


class DCGANDiscriminator(nn.Module):
    """Scores images [N, channels, size, size] as logits [N], positive for real: a `ConvTrunk` and a linear layer."""

    def __init__(self, channels: int, size: int, features: int, stages: int, *, spectral: bool = False) -> None:
        super().__init__()
        self.trunk = ConvTrunk(channels, size, features, stages, spectral=spectral)
        output = nn.Linear(self.trunk.outputs, 1)
        self.output = spectral_norm(output) if spectral else output

    def forward(self, image: Tensor) -> Tensor:
        """Scores a batch."""
        score: Tensor = self.output(self.trunk(image))
        return score.squeeze(1)
