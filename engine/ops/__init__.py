"""The op vocabulary: small immutable descriptions of tensor operations, each able to run itself in plain torch.

An op holds attributes only. Its tensors (activations and weights alike) come as arguments of `apply`, so that a weight
may be a constant of the graph or a runtime value. Tensors are NCHW.
"""

from tilefuse.ops.base import NO_PADDING, Op, PadMode, Pair, Sides
from tilefuse.ops.convolution import Conv2d, ConvTranspose2d, Linear
from tilefuse.ops.layout import Concat, Pad, PixelShuffle, PixelUnshuffle, Reshape, ShuffleOrder, Slice
from tilefuse.ops.normalisation import BatchNorm, GroupNorm
from tilefuse.ops.pointwise import Activation, ActivationKind, Binary, Cast, Clamp, Fused, PRelu, Round, Unary
from tilefuse.ops.pooling import AdaptivePool2d, Mean, Pool2d
from tilefuse.ops.resampling import Coordinates, NearestRounding, Resize, ResizeMode

__all__ = [
    "NO_PADDING",
    "Activation",
    "ActivationKind",
    "AdaptivePool2d",
    "BatchNorm",
    "Binary",
    "Cast",
    "Clamp",
    "Concat",
    "Conv2d",
    "ConvTranspose2d",
    "Coordinates",
    "Fused",
    "GroupNorm",
    "Linear",
    "Mean",
    "NearestRounding",
    "Op",
    "PRelu",
    "Pad",
    "PadMode",
    "Pair",
    "PixelShuffle",
    "PixelUnshuffle",
    "Pool2d",
    "Reshape",
    "Resize",
    "ResizeMode",
    "Round",
    "ShuffleOrder",
    "Sides",
    "Slice",
    "Unary",
]
