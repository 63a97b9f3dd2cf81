"""Convolutions, transposed convolutions and linear layers, with what comes before and after them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tilefuse.backends.triton import pointwise
from tilefuse.backends.triton.builder import Builder, enlargement
from tilefuse.backends.triton.epilogues import Tail, shuffle_order
from tilefuse.backends.triton.operations import Border, Convolve
from tilefuse.backends.triton.places import Place
from tilefuse.backends.triton.prepare import layer_channels, members, tail_of
from tilefuse.graph import Node
from tilefuse.kernels.epilogue import Epilogue, Kind
from tilefuse.kernels.layer import Layer, pack_conv2d, pack_conv_transpose2d, pack_upsample_conv2d
from tilefuse.kernels.toolchain import narrowed
from tilefuse.ops import NO_PADDING, Activation, Binary, Conv2d, ConvTranspose2d, GroupNorm, Linear, Sides

# A TMA descriptor takes rows of whole 16 bytes; narrower images go through pointers, where a prologue costs nothing.
TMA_CHANNELS = 8


@dataclass(frozen=True, eq=False)
class Before:
    """What a layer does to its input: where that lies, and the prologue."""

    place: Place
    statistics: tuple[Place, ...] = ()
    activation: Kind = "none"
    slope: float = 0.0
    scale: Tensor | None = None
    shift: Tensor | None = None


def emit_convolution(builder: Builder, node: Node) -> bool:
    """Emit a convolution or a transposed one; False where its weights are no constants or its image has no channels."""
    head, inputs, _ = members(node)
    if any(name not in builder.graph.weights for name in inputs[1:]) or len(builder.shapes[inputs[0]]) != 4:
        return False
    if not isinstance(head, Conv2d | ConvTranspose2d):
        return False
    weight = builder.weight(inputs[1])
    bias = builder.graph.weights[inputs[2]].float().flatten() if len(inputs) > 2 else None
    tail = tail_of(node, builder.graph.weights)
    if tail.order == "dcr" and tail.shuffle > 1:
        order = shuffle_order(layer_channels(head, weight), tail.shuffle)
        if isinstance(head, ConvTranspose2d):
            if head.groups > 1:
                return False
            weight = weight[:, order]
        else:
            if head.groups > 1:
                return False
            weight = weight[order]
        bias = None if bias is None else bias[order]
        slopes = tail.slopes if tail.slopes is None or tail.slopes.numel() == 1 else tail.slopes[order]
        tail = replace(tail, slopes=slopes)
    factor = _enlarged(builder, head, inputs[0])
    if factor > 1 and isinstance(head, Conv2d):
        source, padding = builder.place(builder.pending[inputs[0]].inputs[0]), head.padding
        if head.padding_mode != "constant":
            # Repeated before the enlargement, border pixels are at least as many as after it: the rest is cropped.
            top, left, bottom, right = padding
            more = (-(-top // factor), -(-left // factor), -(-bottom // factor), -(-right // factor))
            source = _bordered(builder, node, more, "replicate", source)
            top, left, bottom, right = (side - factor * added for side, added in zip(padding, more, strict=True))
            padding = (top, left, bottom, right)
        layer = pack_upsample_conv2d(
            weight, scale=(factor, factor), padding=padding, groups=head.groups, shuffle=tail.shuffle
        )
        _emit(builder, node, "upsample_conv2d", Before(source), layer, bias, tail)
        return True
    before = _before(builder, inputs[0])
    if isinstance(head, ConvTranspose2d):
        layer = pack_conv_transpose2d(
            weight, stride=head.stride, padding=head.padding, output_padding=head.output_padding,
            dilation=head.dilation, groups=head.groups, shuffle=tail.shuffle,
        )  # fmt: skip
        _emit(builder, node, "conv_transpose2d", before, layer, bias, tail)
        return True
    padding = head.padding
    if head.padding_mode != "constant" and padding != NO_PADDING:
        before = replace(before, place=_bordered(builder, node, padding, head.padding_mode, before.place))
        padding = NO_PADDING
    layer = pack_conv2d(
        weight, stride=head.stride, padding=padding, dilation=head.dilation, groups=head.groups, shuffle=tail.shuffle
    )
    _emit(builder, node, "conv2d", before, layer, bias, tail)
    return True


def emit_linear(builder: Builder, node: Node) -> bool:
    """Emit a linear layer on vectors; one whose result becomes an image writes its pixels in the image's order."""
    head, inputs, behind = members(node)
    constants = all(name in builder.graph.weights for name in inputs[1:])
    if not isinstance(head, Linear) or head.transpose_input or len(builder.shapes[inputs[0]]) != 2 or not constants:
        return False
    weight = builder.graph.weights[inputs[1]] * head.alpha
    weight = weight if head.transpose_weight else weight.T
    bias = builder.graph.weights[inputs[2]].float().flatten() * head.beta if len(inputs) > 2 else None
    if bias is not None:
        bias = bias.expand(weight.shape[0])
    tail = tail_of(node, builder.graph.weights)
    image = builder.image_of(node.output)
    if image is not None and all(isinstance(op, Activation) for op, _ in behind):
        c, h, w = image
        order = torch.arange(weight.shape[0]).view(c, h * w).T.flatten()
        weight, bias = weight[order], None if bias is None else bias[order]
        builder.interleaved.add(node.output)
    layer = pack_conv2d(narrowed(weight, builder.dtype)[:, :, None, None])
    _emit(builder, node, "linear", Before(builder.place(inputs[0])), layer, bias, tail)
    return True


def _emit(
    builder: Builder, node: Node, kernel: str, before: Before, layer: Layer, bias: Tensor | None, tail: Tail
) -> None:
    residuals, upsample = read_residuals(builder, tail)
    operation = Convolve(
        layer=layer,
        epilogue=epilogue_of(tail),
        bias=None if bias is None else bias.contiguous(),
        slopes=None if tail.slopes is None else tail.slopes.float().contiguous(),
        upsample=upsample,
        scales=tuple((each.scale, each.value_scale) for each in tail.residuals),
        statistics=bool(before.statistics),
        input_activation=before.activation,
        input_slope=before.slope,
        scale=before.scale,
        shift=before.shift,
    )
    builder.call(kernel, node.output, (before.place, *before.statistics, *residuals), operation)


def read_residuals(builder: Builder, tail: Tail) -> tuple[list[Place], tuple[int, ...]]:
    """Place what an epilogue adds, and give the factor by which each is enlarged while it is read."""
    places, upsample = list[Place](), list[int]()
    for each in tail.residuals:
        waiting = builder.pending.get(each.name)
        factor = enlargement(waiting) if waiting is not None else 1
        places.append(builder.place(waiting.inputs[0] if waiting is not None and factor > 1 else each.name))
        upsample.append(factor)
    return places, tuple(upsample)


def epilogue_of(tail: Tail) -> Epilogue:
    """Describe a tail to the kernels, without its tensors."""
    return Epilogue(
        activation=tail.activation, slope=tail.slope, activation_last=tail.activation_last, low=tail.low,
        high=tail.high, output_scale=tail.scale, output_shift=tail.shift, shuffle=tail.shuffle,
    )  # fmt: skip


def _enlarged(builder: Builder, head: Conv2d | ConvTranspose2d, name: str) -> int:
    """Factor by which a convolution may read a value enlarged, without the enlarged image."""
    node = builder.pending.get(name)
    if node is None or not isinstance(head, Conv2d) or (head.stride, head.dilation) != ((1, 1), (1, 1)):
        return 1
    factor = enlargement(node)
    # Reflected by less than the factor, an enlarged image repeats its border pixels.
    mirrored = head.padding_mode == "reflect" and max(head.padding) < factor
    return factor if mirrored or head.padding_mode in ("constant", "replicate") else 1


def _bordered(builder: Builder, node: Node, sides: Sides, mode: str, place: Place) -> Place:
    n, h, w, c = place.shape
    top, left, bottom, right = sides
    padded = builder.buffer(f"{node.output}.padded", (n, h + top + bottom, w + left + right, c))
    return builder.call("pad", padded.buffer, (place,), Border(sides, mode, 0.0), padded)


def _before(builder: Builder, name: str) -> Before:
    """Read the nodes that wait for a layer as its prologue: a norm and an activation, or products and sums."""
    node = builder.pending.get(name)
    activation: Kind = "none"
    slope, norm = 0.0, node
    if node is not None and isinstance(node.op, Activation):
        activation, slope, norm = node.op.kind, node.op.slope, builder.pending.get(node.inputs[0])
    constant = norm is not None and all(weight in builder.graph.weights for weight in norm.inputs[1:])
    if norm is not None and isinstance(norm.op, GroupNorm) and constant and len(builder.shapes[name]) == 4:
        for done in {name, norm.output}:
            builder.pending.pop(done, None)
        source = builder.place(norm.inputs[0])
        _, scale, shift = pointwise.emit_statistics(builder, norm, norm.op, source)
        return Before(source, (scale, shift), activation, slope)
    channels = builder.shapes[name][1]
    if node is not None and isinstance(node.op, Binary) and channels % TMA_CHANNELS:
        affine = _affine(builder, name, channels)
        if affine is not None:
            under, *factors = affine
            batch = builder.shapes[name][0]
            parts = [part.float().expand(batch, channels).contiguous() for part in factors]
            return Before(builder.place(under), scale=parts[0], shift=parts[1])
    return Before(builder.place(name))


def _affine(builder: Builder, name: str, channels: int) -> tuple[str, Tensor, Tensor] | None:
    """Read waiting sums and products with constants as one scale and shift a channel, and the value under them."""
    node = builder.pending.get(name)
    if node is None or not isinstance(node.op, Binary) or node.op.kind not in ("add", "sub", "mul", "div"):
        return name, torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    constants = [each for each in node.inputs if each in builder.graph.weights]
    if len(constants) != 1 or (node.inputs[0] in constants and node.op.kind in ("sub", "div")):
        return None
    tensor = builder.graph.weights[constants[0]].double()
    if tensor.numel() not in (1, channels) or (tensor.numel() > 1 and tuple(tensor.shape[-3:]) != (channels, 1, 1)):
        return None
    under = _affine(builder, next(each for each in node.inputs if each not in constants), channels)
    if under is None:
        return None
    (source, scale, shift), number = under, tensor.flatten()
    match node.op.kind:
        case "add":
            made = source, scale, shift + number
        case "sub":
            made = source, scale, shift - number
        case "mul":
            made = source, scale * number, shift * number
        case _:
            made = source, scale / number, shift / number
    builder.pending.pop(name)
    return made
