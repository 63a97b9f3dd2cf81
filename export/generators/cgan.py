"""Conditional GAN: a generator told which class to draw, and a discriminator told which class it sees."""

import torch
from torch import Tensor, nn

from tilefuse.export.descriptor import Architecture, Descriptor, Hints, MisfitError, Tensors, shape_of
from tilefuse.export.generators.dcgan import RANGE, projected_size
from tilefuse.export.generators.discriminators import ConvTrunk


class CGAN(nn.Module):
    """Draws [N, channels, 4*size, 4*size] in -1..1 from latents [N, latent] and one-hot labels [N, classes].

    The embedding of the label is a linear layer without bias on the one-hot vector, which equals a table look-up and
    leaves the exported network with floating-point inputs only. Behind it a projected DCGAN.

    Source: Mirza and Osindero, "Conditional Generative Adversarial Nets", 2014.
    """

    def __init__(
        self,
        latent: int = 48,
        classes: int = 10,
        embedding: int = 16,
        features: int = 48,
        channels: int = 1,
        size: int = 7,
    ) -> None:
        super().__init__()
        self.latent_shape = (latent,)
        self.classes = classes
        self.shape = (features, size, size)
        self.embedding = nn.Linear(classes, embedding, bias=False)
        self.project = nn.Linear(latent + embedding, features * size * size)
        self.norm1 = nn.BatchNorm2d(features)
        self.up1 = nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(features // 2)
        self.up2 = nn.ConvTranspose2d(features // 2, channels, 4, stride=2, padding=1)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        """Draws one image a latent, of the class its label says."""
        joined = torch.cat([latent, self.embedding(label)], 1)
        features = torch.relu(self.norm1(self.project(joined).reshape(-1, *self.shape)))
        features = torch.relu(self.norm2(self.up1(features)))
        return torch.tanh(self.up2(features))


class ProjectionDiscriminator(nn.Module):
    """Scores images [N, channels, size, size] with one-hot labels [N, classes] as logits [N], positive for real.

    The score is a linear function of the features plus their inner product with the label's embedding.

    Source: Miyato and Koyama, "cGANs with Projection Discriminator", ICLR 2018.
    """

    def __init__(
        self, channels: int = 1, size: int = 28, features: int = 32, stages: int = 2, classes: int = 10
    ) -> None:
        super().__init__()
        self.trunk = ConvTrunk(channels, size, features, stages)
        self.output = nn.Linear(self.trunk.outputs, 1)
        self.embedding = nn.Linear(classes, self.trunk.outputs, bias=False)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        """Scores a batch."""
        features = self.trunk(image)
        score: Tensor = self.output(features).squeeze(1) + (self.embedding(label) * features).sum(1)
        return score


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Turns class numbers [N] into the fp32 [N, classes] that conditional networks take."""
    return torch.nn.functional.one_hot(labels.long(), classes).float()


def _detect(tensors: Tensors) -> bool:
    return {"embedding.weight", "project.weight", "up1.weight"} <= tensors.keys()


def _describe(tensors: Tensors, _hints: Hints) -> Descriptor:
    embedding, classes = shape_of(tensors, "embedding.weight", 2)
    latent = shape_of(tensors, "project.weight", 2)[1] - embedding
    if latent < 1:
        raise MisfitError(f"project.weight takes {latent + embedding} values, expected more than the embedding's own")
    features = shape_of(tensors, "up1.weight")[0]
    channels = shape_of(tensors, "up2.weight")[1]
    size = projected_size(tensors, "project.weight", features)
    return Descriptor(
        "CGAN",
        {
            "latent": latent,
            "classes": classes,
            "embedding": embedding,
            "features": features,
            "channels": channels,
            "size": size,
        },
        scale=1,
        in_channels=latent,
        out_channels=channels,
        tags=(f"{features}nf", f"{classes} classes", f"{4 * size}px"),
        value_range=RANGE,
        latent=latent,
        inputs={"latent": (latent,), "label": (classes,)},
    )


ARCHITECTURE = Architecture(
    "CGAN",
    CGAN,
    _detect,
    _describe,
    example={"latent": 1, "classes": 1, "embedding": 1, "features": 2, "size": 1},
)
