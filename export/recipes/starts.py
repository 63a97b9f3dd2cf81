"""Initial weights with which a network starts as a plain interpolation, so that it trains only what is better.

The published networks predict the whole image from random weights, which takes them many thousand steps to get as far
as an interpolation. Here three channels of each layer on the shortest way through the network copy the colours.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tilefuse.export.generators.edsr import EDSR
from tilefuse.export.generators.fsrcnn import FSRCNN
from tilefuse.export.generators.rrdbnet import RRDBNet
from tilefuse.export.generators.span import SPAN
from tilefuse.export.generators.srresnet import SRResNet
from tilefuse.export.generators.stylenet import ReflectedConv, TransformerNet

BRANCH_GAIN = 0.1
COLOURS = 3
MIDDLE, CONTRAST = 0.5, 0.2
SMOOTHING = torch.tensor([0.25, 0.5, 0.25])


def start_as_interpolation(network: nn.Module) -> None:
    """Changes the fresh weights of a network [N, C, H, W] -> [N, C, scale*H, scale*W] to those of an interpolation.

    It is bilinear, or bicubic where one layer is large enough. TransformerNet starts with the image at a quarter of its
    resolution and of even contrast. Other architectures stay as they are.
    """
    start = STARTS.get(type(network))
    if start is not None:
        with torch.no_grad():
            start(network)


def triangle(offset: float) -> float:
    """Gives the weight of linear interpolation for a sample `offset` pixels away."""
    return max(0.0, 1.0 - abs(offset))


def cubic(offset: float) -> float:
    """Gives the weight of cubic interpolation (Keys 1981, a = -1/2) for a sample `offset` pixels away."""
    x = abs(offset)
    if x >= 2.0:
        return 0.0
    return 1.5 * x**3 - 2.5 * x**2 + 1.0 if x < 1.0 else -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0


def _start_fsrcnn(network: FSRCNN) -> None:
    channels = network.last_part.out_channels
    convs = [layer for layer in (*network.first_part, *network.mid_part) if isinstance(layer, nn.Conv2d)]
    for conv in convs:
        _copy(conv, channels)
    kernel, scale = network.last_part.kernel_size[0], network.last_part.stride[0]
    # A cubic reaches two pixels to either side, further than the kernel does at larger scales.
    shape = cubic if kernel >= 4 * scale else triangle
    taps = torch.tensor([shape((tap - kernel // 2 + 0.5) / scale - 0.5) for tap in range(kernel)])
    # Twice, because many taps add up to a pixel of the result.
    network.last_part.weight.mul_(BRANCH_GAIN).mul_(BRANCH_GAIN)
    _silence(network.last_part.bias, channels)
    for channel in range(channels):
        network.last_part.weight[channel, channel] = torch.outer(taps, taps)


def _start_edsr(network: EDSR) -> None:
    channels = network.conv_last.out_channels
    _copy(network.conv_first, channels)
    for block in network.body:
        _damp(block.get_submodule("conv2"))
    _damp(network.conv_after_body)
    for layer in network.upsample:
        if isinstance(layer, nn.Conv2d):
            _enlarge(layer, channels, network.conv_last.in_channels)
    _copy(network.conv_last, channels)


def _start_span(network: SPAN) -> None:
    last = _conv(network, "upsampler.0")
    channels = last.out_channels // network.upscale**2
    _copy(network.conv_1, channels)
    _copy(network.conv_cat, channels)
    _enlarge(last, channels, channels)
    if network.norm:
        last.weight /= network.img_range
        if last.bias is not None:
            last.bias += network.mean.flatten().repeat_interleave(network.upscale**2)


def _start_srresnet(network: SRResNet) -> None:
    channels = network.conv3.out_channels
    _copy(_conv(network, "conv1.0"), channels)
    # The norm after the body makes its features as large as the colours; they come in step by step instead.
    _damp(network.get_submodule("conv2.1"))
    for block in network.upsampling:
        conv = _conv(block, "upsample_block.0")
        _enlarge(conv, channels, conv.in_channels)
    _copy(network.conv3, channels)


def _start_rrdbnet(network: RRDBNet) -> None:
    channels = network.conv_last.out_channels
    for layer in (network.conv_first, network.conv_hr, network.conv_last):
        _copy(layer, channels)
    _damp(network.conv_body)
    for stage in range(1, network.num_upconv + 1):
        conv = _conv(network, f"conv_up{stage}")
        _copy(conv, channels)
        # After pixels are repeated, smoothing makes the enlargement linear.
        for channel in range(channels):
            conv.weight[channel, channel] = torch.outer(SMOOTHING, SMOOTHING)


def _start_stylenet(network: TransformerNet) -> None:
    """Lets colours pass as pairs of a value and its negative, of which ReLU keeps one; the norms set their contrast."""
    _pass_pairs(network.conv1, (1.0,), (1.0, -1.0))
    for conv in (network.conv2, network.conv3, network.deconv1, network.deconv2):
        _pass_pairs(conv, (1.0, -1.0), (1.0, -1.0))
    _pass_pairs(network.deconv3, (1.0, -1.0), (CONTRAST * network.img_range,))
    if network.deconv3.conv2d.bias is not None:
        network.deconv3.conv2d.bias.fill_(MIDDLE * network.img_range)
    for block in range(1, network.blocks + 1):
        _damp(network.get_submodule(f"res{block}.in2"))


def _pass_pairs(conv: ReflectedConv, sources: tuple[float, ...], targets: tuple[float, ...]) -> None:
    """Sums the colours of the sources, times their signs, into those of the targets; smoothed by 3x3 convolutions."""
    weight = conv.conv2d.weight
    kernel = weight.shape[2]
    taps = (
        SMOOTHING if kernel == len(SMOOTHING) else torch.tensor([triangle(tap - kernel // 2) for tap in range(kernel)])
    )
    weight[: COLOURS * len(targets)] = 0.0
    _silence(conv.conv2d.bias, COLOURS * len(targets))
    for colour in range(COLOURS):
        for row, target in enumerate(targets):
            for column, source in enumerate(sources):
                weight[row * COLOURS + colour, column * COLOURS + colour] = target * source * torch.outer(taps, taps)


STARTS: Mapping[type[nn.Module], Callable[[Any], None]] = {
    FSRCNN: _start_fsrcnn,
    EDSR: _start_edsr,
    SPAN: _start_span,
    SRResNet: _start_srresnet,
    RRDBNet: _start_rrdbnet,
    TransformerNet: _start_stylenet,
}


def _copy(conv: nn.Conv2d, channels: int) -> None:
    """Makes the first channels of a convolution's output those of its input."""
    weight: Tensor = conv.weight
    weight[:channels] = 0.0
    for channel in range(channels):
        weight[channel, channel, weight.shape[2] // 2, weight.shape[3] // 2] = 1.0
    _silence(conv.bias, channels)


def _enlarge(conv: nn.Conv2d, channels: int, features: int) -> None:
    """Makes the first channels after a 3x3 convolution and the pixel shuffle to `features` a linear interpolation."""
    scale = round((conv.out_channels / features) ** 0.5)
    weight: Tensor = conv.weight
    for channel in range(channels):
        for row in range(scale):
            for column in range(scale):
                taps = [
                    torch.tensor([triangle((phase + 0.5) / scale - 0.5 - tap) for tap in (-1, 0, 1)])
                    for phase in (row, column)
                ]
                index = (channel * scale + row) * scale + column
                weight[index] = 0.0
                weight[index, channel] = torch.outer(taps[0], taps[1])
    _silence(conv.bias, channels * scale**2)


def _conv(network: nn.Module, name: str) -> nn.Conv2d:
    layer = network.get_submodule(name)
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(f"{name} is {type(layer).__name__}, expected a convolution")
    return layer


def _damp(layer: nn.Module) -> None:
    """Lets a branch add little to what passes beside it."""
    layer.get_parameter("weight").mul_(BRANCH_GAIN)


def _silence(bias: Tensor | None, channels: int) -> None:
    if bias is not None:
        bias[:channels] = 0.0
