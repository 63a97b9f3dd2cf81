"""Convolutional discriminators."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2


class ConvTrunk(nn.Module):
    """Turns images [N, channels, size, size] into features [N, outputs] with `stages` 4x4 convolutions of stride 2.

    The widths double from `features`; leaky ReLU follows each. DCGAN's batch norm is left away, because gradient
    penalties, which keep the training stable instead, need each image's own gradient. With `compares` the features end
    in those of `with_spread`.
    """

    def __init__(self, channels: int, size: int, features: int, stages: int, *, compares: bool = False) -> None:
        super().__init__()
        widths = [channels, *(features * 2**stage for stage in range(stages))]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.compares = compares
        self.outputs = (widths[-1] + compares) * (size // 2**stages) ** 2

    def forward(self, image: Tensor) -> Tensor:
        """Gives the features of a batch."""
        for conv in self.convs:
            image = F.leaky_relu(conv(image), SLOPE)
        return (with_spread(image) if self.compares else image).flatten(1)


class DCGANDiscriminator(nn.Module):
    """Scores images [N, channels, size, size] as logits [N], positive for real: a `ConvTrunk` and a linear layer."""

    def __init__(self, channels: int, size: int, features: int, stages: int, *, compares: bool = False) -> None:
        super().__init__()
        self.trunk = ConvTrunk(channels, size, features, stages, compares=compares)
        self.output = nn.Linear(self.trunk.outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Scores a batch."""
        score: Tensor = self.output(self.trunk(image))
        return score.squeeze(1)


def with_spread(features: Tensor) -> Tensor:
    """Adds a channel to [N, C, H, W]: the standard deviation over the batch, averaged over channels and pixels.

    A batch of one picture repeated then looks unlike real ones, so that the generator does not collapse.

    Source: Karras et al., "Progressive Growing of GANs ...", ICLR 2018, section 3.
    """
    spread = (features.var(0, correction=0) + 1e-8).sqrt().mean()
    return torch.cat([features, spread.expand(len(features), 1, *features.shape[2:])], 1)
