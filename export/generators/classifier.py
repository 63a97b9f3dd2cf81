"""The classic image classifier: two convolutions with pooling, three linear layers."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.export.descriptor import Architecture, Descriptor, Hints, MisfitError, Tensors, shape_of


class Classifier(nn.Module):
    """Scores images [N, channels, size, size] in 0..1 as logits [N, classes].

    5x5 convolution, ReLU and 2x2 max pooling twice, then three linear layers of `hidden[0]`, `hidden[1]` and `classes`
    outputs. The keys are `conv1`, `conv2`, `fc1`, `fc2`, `fc3`.

    Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998 (LeNet-5, with ReLU and max
    pooling).
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        classes: int = 10,
        features: tuple[int, int] = (6, 16),
        hidden: tuple[int, int] = (120, 84),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features[0], 5)
        self.conv2 = nn.Conv2d(features[0], features[1], 5)
        self.fc1 = nn.Linear(features[1] * _pooled(size) ** 2, hidden[0])
        self.fc2 = nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], classes)

    def features(self, image: Tensor) -> Tensor:
        """Gives what the last layer decides on, [N, hidden[1]]."""
        x = F.max_pool2d(torch.relu(self.conv1(image)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        return torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1)))))

    def forward(self, image: Tensor) -> Tensor:
        """Scores a batch."""
        logits: Tensor = self.fc3(self.features(image))
        return logits


def _pooled(size: int) -> int:
    return ((size - 4) // 2 - 4) // 2


def _detect(tensors: Tensors) -> bool:
    return {"conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight", "fc3.weight"} <= tensors.keys()


def _describe(tensors: Tensors, hints: Hints) -> Descriptor:
    first, channels, *_ = shape_of(tensors, "conv1.weight")
    second = shape_of(tensors, "conv2.weight")[0]
    hidden, total = shape_of(tensors, "fc1.weight", 2)
    edge = isqrt(total // second)
    if edge < 1 or second * edge * edge != total:
        raise MisfitError(f"fc1.weight takes {total} values, expected {second} channels of a square")
    size, classes = 4 * edge + 12, shape_of(tensors, "fc3.weight", 2)[0]
    # Pooling drops odd rows, so four sizes share one shape; the file may say which was trained.
    if isinstance(hints.get("size"), int) and size <= hints["size"] < size + 4:
        size = hints["size"]
    return Descriptor(
        "Classifier",
        {
            "channels": channels,
            "size": size,
            "classes": classes,
            "features": (first, second),
            "hidden": (hidden, shape_of(tensors, "fc2.weight", 2)[0]),
        },
        scale=1,
        in_channels=channels,
        out_channels=classes,
        tags=(f"{classes} classes", f"{size}px"),
        inputs={"image": (channels, size, size)},
    )


ARCHITECTURE = Architecture(
    "Classifier",
    Classifier,
    _detect,
    _describe,
    example={"size": 16, "features": (1, 1), "hidden": (1, 1), "classes": 1},
)
