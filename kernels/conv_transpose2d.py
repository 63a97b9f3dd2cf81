"""Transposed convolution of NHWC images as sub-pixel phase convolutions."""

from __future__ import annotations

from torch import Tensor

from tilefuse.kernels.convolve import check_call, run_layer
from tilefuse.kernels.epilogue import Epilogue, Prologue, epilogue_ref, prologue_ref
from tilefuse.kernels.layer import ONE, pack_conv_transpose2d
from tilefuse.ops.base import NO_PADDING, Pair, Sides
from tilefuse.ops.convolution import ConvTranspose2d


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    *,
    stride: Pair = ONE,
    padding: Sides = NO_PADDING,
    output_padding: Pair = (0, 0),
    dilation: Pair = ONE,
    groups: int = 1,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve `x` [N, H, W, C] transposed with `weight` [C, O / groups, KH, KW] and return [N, OH, OW, O].

    Stride² phases, each a convolution with every stride-th tap (Shi et al., 2016, "Is the deconvolution layer the same
    as a convolutional layer?"); with few channels they are one convolution with a pixel shuffle in its store.

    Raises:
        BackendError: as `conv2d`.
    """
    layer = pack_conv_transpose2d(
        weight, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
        shuffle=1 if epilogue is None else epilogue.shuffle,
    )  # fmt: skip
    return run_layer(x, layer, prologue=prologue, epilogue=epilogue, out=out)


def conv_transpose2d_ref(
    x: Tensor,
    weight: Tensor,
    *,
    stride: Pair = ONE,
    padding: Sides = NO_PADDING,
    output_padding: Pair = (0, 0),
    dilation: Pair = ONE,
    groups: int = 1,
    prologue: Prologue | None = None,
    epilogue: Epilogue | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Compute `conv_transpose2d` in plain torch: float32 sums of the weight's type."""
    prologue, epilogue = prologue or Prologue(), epilogue or Epilogue()
    layer = pack_conv_transpose2d(
        weight, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
        shuffle=epilogue.shuffle,
    )  # fmt: skip
    out_dtype = check_call(x, layer, prologue, epilogue, out).dtype
    op = ConvTranspose2d(stride, padding, output_padding, dilation, groups)
    value = op.apply(prologue_ref(x, prologue, weight.dtype).permute(0, 3, 1, 2), weight.float())
    return epilogue_ref(value.permute(0, 2, 3, 1), epilogue, out_dtype, out, computed=weight.dtype)
