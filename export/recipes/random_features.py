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
    from `seed`. Three in four have no mean, and so see structure alone; the others see the colour of one pixel, each
    beyond a threshold of its own, so that together they tell which colours there are.
    """

    def __init__(
        self, filters: int = 48, kernel: int = 7, scales: int = 4, *, channels: int = 3, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(filters, channels, kernel, kernel, generator=generator)
        weight -= weight.mean((2, 3), keepdim=True)
        colours = filters // 4
        directions = torch.randn(colours, channels, generator=generator)
        weight[:colours] = 0.0
        weight[:colours, :, kernel // 2, kernel // 2] = directions
        self.weight = weight / weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        self.bias = torch.zeros(filters)
        threshold = torch.rand(colours, channels, generator=generator)
        self.bias[:colours] = -(self.weight[:colours].sum((2, 3)) * threshold).sum(1)
        self.scales = scales

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Gives the features of a batch, the finest first."""
        weight, bias = self.weight.to(images.device), self.bias.to(images.device)
        features = []
        for scale in range(self.scales):
            if scale:
                if min(images.shape[2:]) < 2 * MIN_EDGE_PX:
                    break
                images = F.avg_pool2d(images, 2)
            margin = weight.shape[2] // 2
            features.append(F.relu(F.conv2d(F.pad(images, [margin] * 4, mode="reflect"), weight, bias)))
        return features


@cache
def random_features(filters: int, kernel: int, scales: int, channels: int = 3) -> RandomFeatures:
    """Gives the bank of these numbers, the same one each time."""
    # Kept for other callers, who may want gradients through it, whatever mode the first is in.
    with torch.inference_mode(False):
        return RandomFeatures(filters, kernel, scales, channels=channels)


def perceptual_distance(features: RandomFeatures, images: Tensor, references: Tensor) -> Tensor:
    """Returns the mean absolute difference of features of two batches, averaged over the scales."""
    pairs = list(zip(features(images), features(references), strict=True))
    return torch.stack([(ours - theirs).abs().mean() for ours, theirs in pairs]).mean()
