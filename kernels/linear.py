"""Products of vectors with a matrix, for latent heads: a 1×1 convolution of a row of pixels."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tilefuse.kernels.conv2d import conv2d_ref
from tilefuse.kernels.convolve import run_layer
from tilefuse.kernels.epilogue import Epilogue
from tilefuse.kernels.layer import Layer, pack_conv2d
from tilefuse.kernels.toolchain import require, require_tensor


def pack_linear(weight: Tensor) -> Layer:
    """Pack a weight [O, I]."""
    require_tensor("weight", weight)
    require(weight.ndim == 2, "weight", f"of shape {tuple(weight.shape)}", "[O, I]")
    return pack_conv2d(weight[:, :, None, None])


def linear(x: Tensor, weight: Tensor | Layer, *, epilogue: Epilogue | None = None, out: Tensor | None = None) -> Tensor:
    """Multiply `x` [.., I] by `weight` [O, I] (or a packed one) and return [.., O], after the epilogue.

    Args:
        epilogue: without a pixel shuffle; residuals have the result's shape.
        out: [.., O], contiguous.

    Raises:
        BackendError: before any launch, naming the tensor and what is accepted.
    """
    layer = weight if isinstance(weight, Layer) else pack_linear(weight)
    _check(x, out)
    row = None if out is None else _row(out)
    result = run_layer(_row(x), layer, epilogue=_rows(epilogue), out=row)
    return result.reshape(*x.shape[:-1], layer.outputs) if out is None else out


def linear_ref(x: Tensor, weight: Tensor, *, epilogue: Epilogue | None = None, out: Tensor | None = None) -> Tensor:
    """Compute `linear` in plain torch: float32 sums of the weight's type."""
    _check(x, out)
    row = None if out is None else _row(out)
    result = conv2d_ref(_row(x), weight[:, :, None, None], epilogue=_rows(epilogue), out=row)
    return result.reshape(*x.shape[:-1], weight.shape[0]) if out is None else out


def _check(x: Tensor, out: Tensor | None) -> None:
    require_tensor("x", x)
    require(x.ndim >= 1, "x", "a scalar", "[.., I]")
    if out is not None:
        require_tensor("out", out)
        require(out.is_contiguous(), "out", "not contiguous", "a contiguous tensor")


def _row(x: Tensor) -> Tensor:
    """View [.., I] as an image [1, 1, M, I]; a tensor whose vectors are not evenly spaced is copied."""
    if x.numel() == 0:
        return x.new_empty(0, 1, 1, x.shape[-1])
    row = x.reshape(1, 1, -1, x.shape[-1])
    return row if row.shape[3] == 1 or row.stride(3) == 1 else row.contiguous()


def _rows(epilogue: Epilogue | None) -> Epilogue | None:
    if epilogue is None:
        return None
    require(epilogue.shuffle == 1, "epilogue.shuffle", epilogue.shuffle, "1 in a linear layer")
    return replace(epilogue, residuals=tuple(replace(r, tensor=_row(r.tensor)) for r in epilogue.residuals))
