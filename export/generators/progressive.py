"""What grows a PGGAN: layers of equalised learning rate, the fading generator and its discriminator."""

import itertools
from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.errors import ModelError
from tilefuse.export.generators.discriminators import with_spread
from tilefuse.export.generators.pggan import PGGAN, SLOPE, Block, pixel_norm


class Equalised(nn.Module):
    """A convolution, transposed convolution or linear layer whose stored weights have unit variance.

    They are multiplied by gain/sqrt(fan in), He's constant, at each run, so that Adam, which steps by the same amount
    whatever a weight's scale, changes all layers at the same relative speed.
    """

    def __init__(self, layer: nn.Module, gain: float = sqrt(2.0)) -> None:
        super().__init__()
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) or layer.bias is None:
            raise ModelError(
                f"a {type(layer).__name__} can't be equalised, only a convolution or linear layer with bias"
            )
        # A transposed convolution from 1x1 adds up its inputs once a pixel, whatever its kernel.
        spread = layer.weight.shape[0] if isinstance(layer, nn.ConvTranspose2d) else prod(layer.weight.shape[1:])
        self.multiplier = gain / sqrt(spread)
        self.layer = layer
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the layer with its multiplied weights."""
        weight = self.layer.weight * self.multiplier
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        if isinstance(self.layer, nn.ConvTranspose2d):
            return F.conv_transpose2d(x, weight, self.layer.bias)
        return F.conv2d(x, weight, self.layer.bias, padding=self.layer.padding)

    def folded(self) -> dict[str, Tensor]:
        """Gives the weights of a plain layer that does the same."""
        state = self.layer.state_dict()
        return {"weight": state["weight"] * self.multiplier, "bias": state["bias"]}


class GrowingBlock(Block):
    """The block of a PGGAN with equalised layers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.conv1 = Equalised(self.conv1)
        self.conv2 = Equalised(self.conv2)


class GrowingPGGAN(nn.Module):
    """A PGGAN in growth: at `level` L it draws 4*2**L pixels from latents [N, latent, 1, 1].

    `alpha` in 0..1 is the share of the newest block; the rest is the enlarged image of the level below.
    """

    def __init__(self, latent: int, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.arguments = (latent, widths, channels)
        self.latent_shape = (latent, 1, 1)
        self.initial = Equalised(nn.ConvTranspose2d(latent, widths[0], 4))
        self.conv = Equalised(nn.Conv2d(widths[0], widths[0], 3, padding=1))
        self.blocks = nn.ModuleList(GrowingBlock(a, b) for a, b in itertools.pairwise(widths))
        self.to_rgb = nn.ModuleList(Equalised(nn.Conv2d(width, channels, 1), gain=1.0) for width in widths)

    def forward(self, latent: Tensor, level: int, alpha: float) -> Tensor:
        """Draws one image a latent."""
        x = pixel_norm(F.leaky_relu(self.initial(pixel_norm(latent)), SLOPE))
        before = x = pixel_norm(F.leaky_relu(self.conv(x), SLOPE))
        for block in list(self.blocks)[:level]:
            before, x = x, block(x)
        image: Tensor = self.to_rgb[level](x)
        if level == 0 or alpha == 1.0:
            return image
        below = F.interpolate(self.to_rgb[level - 1](before), scale_factor=2.0, mode="nearest")
        return torch.lerp(below, image, alpha)

    def fold(self) -> PGGAN:
        """Builds the grown network of plain layers, its weights multiplied out."""
        plain = PGGAN(*self.arguments)
        weights = plain.state_dict()
        last = f"to_rgb.{len(self.to_rgb) - 1}"
        for key, module in self.named_modules():
            name = "to_rgb" if key == last else key
            if isinstance(module, Equalised) and f"{name}.weight" in weights:
                weights |= {f"{name}.{part}": tensor for part, tensor in module.folded().items()}
        plain.load_state_dict(weights)
        return plain


class GrowingDiscriminator(nn.Module):
    """Scores images [N, channels, 4*2**level, same] as logits [N]: the generator's mirror, grown along with it.

    At 4x4 the spread of the batch is one more channel (`with_spread`).
    """

    def __init__(self, widths: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.from_rgb = nn.ModuleList(Equalised(nn.Conv2d(channels, width, 1)) for width in widths)
        self.blocks = nn.ModuleList(
            nn.ModuleList([Equalised(nn.Conv2d(b, b, 3, padding=1)), Equalised(nn.Conv2d(b, a, 3, padding=1))])
            for a, b in itertools.pairwise(widths)
        )
        self.conv = Equalised(nn.Conv2d(widths[0] + 1, widths[0], 3, padding=1))
        self.hidden = Equalised(nn.Linear(16 * widths[0], widths[0]))
        self.output = Equalised(nn.Linear(widths[0], 1), gain=1.0)

    def forward(self, image: Tensor, level: int, alpha: float) -> Tensor:
        """Scores a batch."""
        x = F.leaky_relu(self.from_rgb[level](image), SLOPE)
        for index in range(level, 0, -1):
            for conv in self.blocks[index - 1]:  # type: ignore[attr-defined]
                x = F.leaky_relu(conv(x), SLOPE)
            x = F.avg_pool2d(x, 2)
            if index == level and alpha < 1.0:
                below = F.leaky_relu(self.from_rgb[level - 1](F.avg_pool2d(image, 2)), SLOPE)
                x = torch.lerp(below, x, alpha)
        x = F.leaky_relu(self.conv(with_spread(x)), SLOPE).flatten(1)
        score: Tensor = self.output(F.leaky_relu(self.hidden(x), SLOPE))
        return score.squeeze(1)
