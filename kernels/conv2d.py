"""2-D convolution of NHWC images."""

from __future__ import annotations

from torch import Tensor

from tilefuse.kernels.convolve import check_call, run_layer
from tilefuse.kernels.epilogue import Epilogue, Prologue, epilogue_ref, prologue_ref
from tilefuse.kernels.layer import ONE, pack_conv2d
from tilefuse.ops.base import NO_PADDING, Pair, Sides
from tilefuse.ops.convolution import Conv2d


def conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    stride: Pair = ONE,
    padding: Sides = NO_PADDING,
    dilation: Pair = ONE,
    groups: int = 1,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve `x` [N, H, W, C] with `weight` [O, C / groups, KH, KW] and return [N, OH, OW, O].

    The weight is packed on every call; `pack_conv2d` once and `run_layer` often is the way of an engine.

    Args:
        padding: zeros (top, left, bottom, right), so a stripe of rows that carries its context is a plain call;
            negative numbers crop.
        out: NHWC buffer whose channels from `epilogue.channel_offset` on are written.

    Raises:
        BackendError: before any launch, naming the tensor and what is accepted.
    """
    shuffle = 1 if epilogue is None else epilogue.shuffle
    layer = pack_conv2d(weight, stride=stride, padding=padding, dilation=dilation, groups=groups, shuffle=shuffle)
    return run_layer(x, layer, prologue=prologue, epilogue=epilogue, out=out)


def conv2d_ref(
    x: Tensor,
    weight: Tensor,
    *,
    stride: Pair = ONE,
    padding: Sides = NO_PADDING,
    dilation: Pair = ONE,
    groups: int = 1,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Compute `conv2d` in plain torch: float32 sums of the weight's type."""
    prologue, epilogue = prologue or Prologue(), epilogue or Epilogue()
    layer = pack_conv2d(
        weight, stride=stride, padding=padding, dilation=dilation, groups=groups, shuffle=epilogue.shuffle
    )
    out_dtype = check_call(x, layer, prologue, epilogue, out).dtype
    op = Conv2d(stride, padding, dilation, groups)
    value = op.apply(prologue_ref(x, prologue, weight.dtype).permute(0, 3, 1, 2), weight.float())
    return epilogue_ref(value.permute(0, 2, 3, 1), epilogue, out_dtype, out, computed=weight.dtype)
