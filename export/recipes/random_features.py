"""Fixed random convolutions at several scales, whose features stand in for those of a pretrained network.

Source: Ustyuzhaninov et al., "What does it take to generate natural textures?", ICLR 2017: Gram matrices of shallow
random filters of many sizes describe textures about as well as those of a trained network. Here one size of filters
looks at several sizes of the image, which costs less.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_EDGE_PX = 8


class RandomFeatures:
    """Turns images [N, channels, H, W] into features [N, filters, h, w] of ReLU units, one tensor a scale.

    The image is halved from scale to scale by averaging, as long as it keeps `MIN_EDGE_PX` pixels. Filters are drawn
    from `seed`; all but an eighth have no mean, and so see structure and no colour.
    """

    def __init__(
        self, filters: int = 48, kernel: int = 7, scales: int = 4, *, channels: int = 3, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(filters, channels, kernel, kernel, generator=generator)
        sees_colour = (torch.arange(filters) % 8 == 0).float()[:, None, None, None]
        weight = weight - (1 - sees_colour) * weight.mean((2, 3), keepdim=True)
        self.weight = weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        self.scales = scales

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Gives the features of a batch, the finest first."""
        weight = self.weight.to(images.device)
        features = []
        for scale in range(self.scales):
            if scale:
                if min(images.shape[2:]) < 2 * MIN_EDGE_PX:
                    break
                images = F.avg_pool2d(images, 2)
            features.append(F.relu(F.conv2d(images, weight)))
        return features


@cache
def random_features(filters: int, kernel: int, scales: int, channels: int = 3) -> RandomFeatures:
    """Gives the bank of these numbers, the same one each time."""
    return RandomFeatures(filters, kernel, scales, channels=channels)


def perceptual_distance(features: RandomFeatures, images: Tensor, references: Tensor) -> Tensor:
    """Returns the mean absolute difference of features of two batches, averaged over the scales."""
    pairs = list(zip(features(images), features(references), strict=True))
    return torch.stack([(ours - theirs).abs().mean() for ours, theirs in pairs]).mean()
