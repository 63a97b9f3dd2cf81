"""ncnn's layers that multiply by a weight, and the padding before them."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from tilefuse.emitters.ncnn_sheet import Params, Sheet, raw, require, tagged
from tilefuse.graph import Node
from tilefuse.ops import NO_PADDING, Activation, Conv2d, ConvTranspose2d, Linear, Op, PadMode, Sides

_PADDING: dict[PadMode, int] = {"constant": 0, "replicate": 1, "reflect": 2, "circular": 0}


def conv(sheet: Sheet, node: Node, output: str, activation: Op | None) -> None:
    op = cast(Conv2d, node.op)
    x, weight_name, *bias = node.inputs
    weight = sheet.constant(weight_name, "weight")
    padding = op.padding
    if op.padding_mode != "constant" and padding != NO_PADDING:
        x, padding = padded(sheet, x, padding, op.padding_mode, 0.0), NO_PADDING
    require(min(padding) >= 0, f"padding {padding} crops")
    params = _kernel(weight.shape[0], weight, op.stride, op.dilation, padding)
    multiply(sheet, "Convolution", x, output, op.groups, params, weight, bias, activation)


def conv_transpose(sheet: Sheet, node: Node, output: str, activation: Op | None) -> None:
    op = cast(ConvTranspose2d, node.op)
    x, weight_name, *bias = node.inputs
    weight = sheet.constant(weight_name, "weight")
    require(min(op.padding) >= 0, f"padding {op.padding} extends")
    # [C, O / groups, KH, KW] -> [O, C / groups, KH, KW], group by group.
    channels, per_group, *kernel = weight.shape
    grouped = weight.reshape(op.groups, channels // op.groups, per_group, *kernel).transpose(1, 2)
    weight = grouped.reshape(op.groups * per_group, channels // op.groups, *kernel)
    params = _kernel(weight.shape[0], weight, op.stride, op.dilation, op.padding)
    params |= {18: op.output_padding[1], 19: op.output_padding[0]}
    multiply(sheet, "Deconvolution", x, output, op.groups, params, weight, bias, activation)


def _kernel(outputs: int, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int], padding: Sides) -> Params:
    top, left, bottom, right = padding
    height, width = weight.shape[2:]
    params: Params = {0: outputs, 1: width, 11: height, 2: dilation[1], 12: dilation[0], 3: stride[1], 13: stride[0]}
    return params | {4: left, 14: top, 15: right, 16: bottom}


def multiply(
    sheet: Sheet,
    kind: str,
    x: str,
    output: str,
    groups: int,
    params: Params,
    weight: Tensor,
    bias: list[str],
    activation: Op | None,
) -> None:
    data = tagged(weight)
    if bias:
        data += raw(sheet.constant(bias[0], "bias"))
    params |= {5: int(bool(bias)), 6: weight.numel(), **_activation_params(activation)}
    if groups > 1:
        params[7] = groups
    sheet.add(kind + ("DepthWise" if groups > 1 else ""), (x,), output, params, data)


def _activation_params(activation: Op | None) -> Params:
    if not isinstance(activation, Activation):
        return {}
    return {9: 1} if activation.kind == "relu" else {9: 2, 10: [float(activation.slope)]}


def linear(sheet: Sheet, node: Node, output: str, activation: Op | None) -> None:
    op = cast(Linear, node.op)
    x, weight_name, *bias = node.inputs
    require(len(sheet.shapes[x]) in (2, 3), f"an input of rank {len(sheet.shapes[x])}")
    require(not op.transpose_input, "a transposed input")
    weight = sheet.constant(weight_name, "weight") * op.alpha
    require(weight.ndim == 2, f"a weight of rank {weight.ndim}")
    weight = weight if op.transpose_weight else weight.mT
    params: Params = {0: weight.shape[0], 1: int(bool(bias)), 2: weight.numel(), **_activation_params(activation)}
    data = tagged(weight)
    if bias:
        offset = sheet.constant(bias[0], "bias")
        require(offset.numel() in (1, offset.shape[-1] if offset.ndim else 1), "a bias that differs between rows")
        data += raw((offset * op.beta).reshape(-1).expand(weight.shape[0]))
    sheet.add("InnerProduct", (x,), output, params, data)


def padded(sheet: Sheet, x: str, sides: Sides, mode: PadMode, value: float, output: str = "") -> str:
    """Write padding, or cropping where sides are negative; return the padded value's name."""
    if mode == "circular" and max(sides) > 0:
        return _wrapped(sheet, x, sides, output or sheet.fresh())
    require(mode == "constant" or min(sides) >= 0 or max(sides) <= 0, f"{mode} padding that also crops")
    output = output or sheet.fresh()
    if min(sides) < 0:
        top, left, bottom, right = (max(-side, 0) for side in sides)
        height, width = sheet.shapes[x][2:]
        cropped = output if max(sides) <= 0 else sheet.fresh()
        sheet.add("Crop", (x,), cropped, {9: [top, left], 10: [height - bottom, width - right], 11: [1, 2]})
        x = cropped
    if max(sides) > 0 or min(sides) == 0:
        top, left, bottom, right = (max(side, 0) for side in sides)
        sheet.add("Padding", (x,), output, {0: top, 1: bottom, 2: left, 3: right, 4: _PADDING[mode], 5: float(value)})
    return output


def _wrapped(sheet: Sheet, x: str, sides: Sides, output: str) -> str:
    """Write circular padding, which ncnn lacks: strips from the far sides are joined on."""
    require(min(sides) >= 0, "circular padding that also crops")
    top, left, bottom, right = sides
    pads = [(axis, *pad) for axis, pad in ((1, (top, bottom)), (2, (left, right))) if max(pad) > 0]
    sizes = sheet.shapes[x][1:]
    for position, (axis, before, after) in enumerate(pads):
        ahead, behind = _strip(sheet, x, axis, sizes[axis] - before, before), _strip(sheet, x, axis, 0, after)
        joined = output if position == len(pads) - 1 else sheet.fresh()
        sheet.add("Concat", (*ahead, x, *behind), joined, {0: axis})
        x = joined
    return output


def _strip(sheet: Sheet, x: str, axis: int, start: int, count: int) -> tuple[str, ...]:
    if count == 0:
        return ()
    strip = sheet.fresh()
    sheet.add("Crop", (x,), strip, {9: [start], 10: [start + count], 11: [axis]})
    return (strip,)
