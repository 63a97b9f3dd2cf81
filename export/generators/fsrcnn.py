"""FSRCNN: features at low resolution, enlarged by one transposed convolution."""

from torch import Tensor, nn

from tilefuse.errors import ModelError
from tilefuse.export.descriptor import (
    MAX_SCALE,
    Architecture,
    Descriptor,
    Hints,
    MisfitError,
    Tensors,
    indices_of,
    rename,
    shape_of,
)


class FSRCNN(nn.Module):
    """Upscales by `scale`: [N, channels, H, W] -> [N, channels, scale*H, scale*W].

    The published networks work on the luma alone (one channel, 0..1). The keys are those of yjn870/FSRCNN-pytorch
    (`first_part.0`, `mid_part.0`, `last_part`).

    Source: Dong et al., "Accelerating the Super-Resolution Convolutional Neural Network", ECCV 2016.
    """

    def __init__(self, scale: int, channels: int = 1, d: int = 56, s: int = 12, m: int = 4) -> None:
        super().__init__()
        self.first_part = nn.Sequential(nn.Conv2d(channels, d, 5, padding=2), nn.PReLU(d))
        layers: list[nn.Module] = [nn.Conv2d(d, s, 1), nn.PReLU(s)]
        for _ in range(m):
            layers += [nn.Conv2d(s, s, 3, padding=1), nn.PReLU(s)]
        self.mid_part = nn.Sequential(*layers, nn.Conv2d(s, d, 1), nn.PReLU(d))
        self.last_part = nn.ConvTranspose2d(d, channels, 9, stride=scale, padding=4, output_padding=scale - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Upscales a batch."""
        output: Tensor = self.last_part(self.mid_part(self.first_part(x)))
        return output


def _detect(tensors: Tensors) -> bool:
    return any(
        keys <= tensors.keys()
        for keys in ({"first_part.1.weight", "mid_part.0.weight"}, {"feature_extraction.0.weight", "deconv.weight"})
    )


def _convert(tensors: Tensors) -> Tensors:
    mapping = indices_of(tensors, "map.")
    rules = {rf"map\.{index}\.": f"mid_part.{index + 2}." for index in mapping}
    rules |= {rf"expand\.{index}\.": f"mid_part.{len(mapping) + 2 + index}." for index in (0, 1)}
    return rename(
        tensors,
        rules | {r"feature_extraction\.": "first_part.", r"shrink\.": "mid_part.", r"deconv\.": "last_part."},
    )


def _describe(tensors: Tensors, hints: Hints) -> Descriptor:
    d, channels = shape_of(tensors, "first_part.0.weight")[:2]
    s = shape_of(tensors, "mid_part.0.weight")[0]
    m = len(indices_of(tensors, "mid_part.")) // 2 - 2
    if m < 0:
        raise MisfitError("mid_part has fewer layers than one that shrinks and one that expands")
    scale = hints.get("scale")
    # The stride of a transposed convolution leaves no trace in its weights.
    if not isinstance(scale, int) or not 1 <= scale <= MAX_SCALE:
        raise ModelError(
            "an FSRCNN checkpoint does not hold its scale; put it into the file's name (fsrcnn_x3.pth) "
            "or save it as safetensors with the metadata scale=3"
        )
    return Descriptor(
        "FSRCNN",
        {"scale": scale, "channels": channels, "d": d, "s": s, "m": m},
        scale=scale,
        in_channels=channels,
        out_channels=channels,
        tags=(f"d{d} s{s} m{m}", *(("luma",) if channels == 1 else ())),
    )


ARCHITECTURE = Architecture("FSRCNN", FSRCNN, _detect, _describe, _convert, example={"scale": 2, "d": 1, "s": 1})
