"""SRVGGNetCompact: a plain chain of 3x3 convolutions that works at low resolution to the end."""

import torch.nn.functional as F
from torch import Tensor, nn

from tilefuse.errors import ModelError


class SRVGGNetCompact(nn.Module):
    """Upscales [N, num_in_ch, H, W] to [N, num_out_ch, upscale*H, upscale*W] with `num_conv` + 2 convolutions of 3x3.

    The keys are the published ones: `body.0`, `body.2`, ... are convolutions, `body.1`, `body.3`, ... PReLU weights.
    The nearest enlargement of the input is added to the shuffled output. The halo is `num_conv` + 2.
    Raises ModelError for an activation that is not one of prelu, relu, leakyrelu.

    Source: the compact generator of Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure
    Synthetic Data", ICCV workshops 2021.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_conv: int = 16,
        upscale: int = 4,
        act_type: str = "prelu",
    ) -> None:
        super().__init__()
        self.upscale = upscale
        layers: list[nn.Module] = [nn.Conv2d(num_in_ch, num_feat, 3, padding=1), _activation(act_type, num_feat)]
        for _ in range(num_conv):
            layers += [nn.Conv2d(num_feat, num_feat, 3, padding=1), _activation(act_type, num_feat)]
        layers.append(nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Upscales a batch."""
        residual = F.pixel_shuffle(self.body(x), self.upscale)
        return residual + F.interpolate(x, scale_factor=float(self.upscale), mode="nearest")


def _activation(name: str, channels: int) -> nn.Module:
    if name == "prelu":
        return nn.PReLU(channels)
    if name == "relu":
        return nn.ReLU()
    if name == "leakyrelu":
        return nn.LeakyReLU(0.1)
    raise ModelError(f"SRVGGNetCompact has no activation {name!r}; use prelu, relu or leakyrelu")
