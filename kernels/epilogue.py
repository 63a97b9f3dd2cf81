"""What a kernel does to its input before, and to its result after, the multiplication: one description, one reference.

The stages of an epilogue run in the order of the fields of `Epilogue`; each is left out where it has its default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from tilefuse.kernels.toolchain import FLOATS, IMAGES, narrowed, require, require_nhwc, require_tensor
from tilefuse.ops.pointwise import Activation, ActivationKind

Kind = Literal[ActivationKind, "none", "prelu"]
KINDS: tuple[str, ...] = ("none", "prelu", *get_args(ActivationKind))
MOST_RESIDUALS = 2


@dataclass(frozen=True)
class Prologue:
    """Read an input: integers become floats by `input_scale`, then x · scale + shift a channel, then an activation.

    Attributes:
        input_scale: factor of uint8 and uint16 inputs, rounded to the weight's type as `image_load` would store them;
            float inputs are taken as they are.
        scale, shift: float32 [N, C], both or none: a normalisation whose statistics are known (instance, group).
        activation, slope: applied after them. Padding is zero after the prologue, not before.
    """

    input_scale: float = 1.0 / 255.0
    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: Kind = "none"
    slope: float = 0.0

    @property
    def is_affine(self) -> bool:
        """Tell whether float inputs are changed at all."""
        return self.scale is not None or self.activation != "none"

    def tensors(self) -> tuple[tuple[str, Tensor | None], ...]:
        """List what a kernel reads, by name."""
        return ("prologue.scale", self.scale), ("prologue.shift", self.shift)


@dataclass(frozen=True)
class Residual:
    """Add a tensor to the running value: value · value_scale + tensor · scale.

    Attributes:
        tensor: NHWC of the result's shape (after the pixel shuffle), or smaller by `upsample` along both edges.
        upsample: nearest-neighbour factor by which the tensor is enlarged while it is read.
    """

    tensor: Tensor
    scale: float = 1.0
    value_scale: float = 1.0
    upsample: int = 1


@dataclass(frozen=True)
class Epilogue:
    """Finish a value: bias, activation, residuals, clamp, scale and shift, pixel shuffle, conversion, placement.

    Attributes:
        bias: [O], one a channel of the layer, before the pixel shuffle.
        activation: engine name of an activation, "prelu" or "none"; `slope` is leaky_relu's or elu's.
        slopes: [1] or [O], prelu's.
        residuals: two at most, added one after the other.
        activation_last: the activation comes after the residuals instead of before (residual blocks that end in one).
        low, high: limits applied next; None leaves that side open.
        output_scale, output_shift: value · output_scale + output_shift, last; 255 and 0 turn [0, 1] into uint8's range.
        shuffle: factor of a pixel shuffle (torch's order), [N, H, W, C · r²] → [N, H · r, W · r, C].
        out_dtype: type of the result; None keeps a float input's, and takes the weight's for integer inputs. Into uint8
            and uint16 values are clipped to the type's range and rounded half to even.
        channel_offset: first channel written in `out`, a buffer that may have more channels than the result.
        levels: the value is a brightness, 0 black and 1 white, that becomes a level of the integer `out_dtype` with the
            bits `image_store` gives a result in the weight's type: rounded to that type first, and 0 for a NaN, which
            float16 holds for what is too large for it.
        flag: int32 [1], with `levels`: becomes 1 if a value is not finite in that type, and is left alone otherwise;
            taken where `makes_whole` has grid positions fill the result as wholes.
    """

    bias: Tensor | None = None
    activation: Kind = "none"
    slope: float = 0.0
    slopes: Tensor | None = None
    residuals: tuple[Residual, ...] = field(default=())
    activation_last: bool = False
    low: float | None = None
    high: float | None = None
    output_scale: float = 1.0
    output_shift: float = 0.0
    shuffle: int = 1
    out_dtype: torch.dtype | None = None
    channel_offset: int = 0
    levels: bool = False
    flag: Tensor | None = None

    @property
    def is_clamped(self) -> bool:
        """Tell whether a limit is set: None and an infinite one, as `numbers` writes it, leave their side open."""
        return self.low not in (None, -math.inf) or self.high not in (None, math.inf)

    def result_dtype(self, x: Tensor, weight: Tensor) -> torch.dtype:
        """Give the type of the result for an input and a weight."""
        if self.out_dtype is not None:
            return self.out_dtype
        return x.dtype if x.dtype in FLOATS else weight.dtype

    def tensors(self) -> tuple[tuple[str, Tensor | None], ...]:
        """List what a kernel reads, and the flag, by name."""
        residuals = ((f"epilogue.residuals[{i}]", residual.tensor) for i, residual in enumerate(self.residuals))
        return ("epilogue.bias", self.bias), ("epilogue.slopes", self.slopes), ("epilogue.flag", self.flag), *residuals

    def numbers(self) -> tuple[float, ...]:
        """List the scalars in the order that the kernels take them."""
        scales = [(r.value_scale, r.scale) for r in self.residuals] + [(1.0, 0.0)] * MOST_RESIDUALS
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return (self.slope, *scales[0], *scales[1], low, high, self.output_scale, self.output_shift)

    def arguments(self, absent: Tensor) -> dict[str, object]:
        """Give a kernel's arguments for the epilogue; `absent` is a tensor to point at where one is not there."""
        numbers = ("slope", "value0", "scale0", "value1", "scale1", "low", "high", "out_scale", "out_shift")
        given: dict[str, object] = {
            "bias_ptr": absent if self.bias is None else self.bias,
            "slopes_ptr": absent if self.slopes is None else self.slopes,
            "flag_ptr": absent if self.flag is None else self.flag,
            "LEVELS": 0 if not self.levels else 1 if self.flag is None else 2,
            "BIAS": self.bias is not None,
            "SLOPES": 0 if self.slopes is None else self.slopes.shape[0],
            "KIND": self.activation,
            "LAST": self.activation_last,
            "CLAMP": self.is_clamped,
            "AFFINE": (self.output_scale, self.output_shift) != (1.0, 0.0),
            **dict(zip(numbers, self.numbers(), strict=True)),
        }
        for i, residual in enumerate([*self.residuals, None, None][:2]):
            tensor = absent if residual is None else residual.tensor
            strides = (0, 0, 0) if residual is None else tensor.stride()[:3]
            given |= {f"r{i}_ptr": tensor, f"UP{i}": 0 if residual is None else residual.upsample}
            given |= {f"r{i}{axis}": stride for axis, stride in zip("nhw", strides, strict=True)}
        return given


def check_prologue(prologue: Prologue, x: Tensor) -> None:
    """Raise BackendError for a prologue that does not fit the input."""
    require(prologue.activation in KINDS[:1] + KINDS[2:], "prologue.activation", prologue.activation, ", ".join(KINDS))
    both = (prologue.scale is None) == (prologue.shift is None)
    require(both, "prologue.shift", "given without scale, or scale without it", "both or none")
    for name, tensor in (("prologue.scale", prologue.scale), ("prologue.shift", prologue.shift)):
        if tensor is not None:
            require_tensor(name, tensor)
            expected = (x.shape[0], x.shape[3])
            given = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            fits = tensor.dtype == torch.float32 and tuple(tensor.shape) == expected and tensor.is_contiguous()
            require(fits, name, given, f"contiguous float32 {list(expected)}")
            require(tensor.device == x.device, name, f"on {tensor.device}", f"the device of x, {x.device}")


def check_epilogue(epilogue: Epilogue, x: Tensor, channels: int, result: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise BackendError for an epilogue that does not fit a layer.

    Args:
        channels: of the layer, before the pixel shuffle.
        result: shape of the result, [N, H, W, C].
        dtype: type of the result.
    """
    require(epilogue.activation in KINDS, "epilogue.activation", epilogue.activation, ", ".join(KINDS))
    require(dtype in FLOATS + IMAGES, "epilogue.out_dtype", dtype, ", ".join(map(str, FLOATS + IMAGES)))
    levels, flag = epilogue.levels, epilogue.flag
    require(dtype in IMAGES or not levels, "epilogue.out_dtype", f"{dtype} for levels", "torch.uint8, torch.uint16")
    if flag is not None:
        require_tensor("epilogue.flag", flag)
        given = f"{flag.dtype} of shape {tuple(flag.shape)} on {flag.device}" + ("" if levels else " without levels")
        fits = levels and flag.dtype == torch.int32 and tuple(flag.shape) == (1,) and flag.device == x.device
        require(fits, "epilogue.flag", given, f"int32 [1] on {x.device}, with epilogue.levels")
    has_slopes = epilogue.slopes is not None
    given = f"{'given' if has_slopes else 'missing'} for activation {epilogue.activation}"
    require(
        has_slopes == (epilogue.activation == "prelu"), "epilogue.slopes", given, "given for prelu, and only for it"
    )
    for name, tensor, sizes in (("bias", epilogue.bias, (channels,)), ("slopes", epilogue.slopes, (1, channels))):
        if tensor is not None:
            require_tensor(f"epilogue.{name}", tensor)
            require(tensor.device == x.device, f"epilogue.{name}", f"on {tensor.device}", f"{x.device}, as x")
            fits = tensor.ndim == 1 and tensor.shape[0] in sizes and tensor.dtype in FLOATS and tensor.is_contiguous()
            given = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            accepted = f"contiguous float tensor of {' or '.join(map(str, sizes))} numbers"
            require(fits, f"epilogue.{name}", given, accepted)
    if epilogue.slopes is not None and epilogue.shuffle > 1 and epilogue.activation_last:
        given = f"{epilogue.slopes.shape[0]} numbers behind a pixel shuffle"
        require(epilogue.slopes.shape[0] == 1, "epilogue.slopes", given, "one number")
    many = len(epilogue.residuals)
    require(many <= MOST_RESIDUALS, "epilogue.residuals", f"{many} tensors", f"{MOST_RESIDUALS} at most")
    for position, residual in enumerate(epilogue.residuals):
        name, u = f"epilogue.residuals[{position}]", residual.upsample
        require_nhwc(name, residual.tensor, x, FLOATS + IMAGES[:1])
        require(u >= 1, f"{name}.upsample", u, "a factor from 1 up")
        n, h, w, c = result
        fits = tuple(residual.tensor.shape) == (n, -(-h // u), -(-w // u), c)
        given = f"{tuple(residual.tensor.shape)} enlarged by {u}"
        require(fits, name, given, f"the result's shape {result}")


def prologue_ref(x: Tensor, prologue: Prologue, dtype: torch.dtype) -> Tensor:
    """Apply a prologue to NHWC `x` in plain torch: float32, rounded to `dtype` as the kernels round their operands."""
    value = x.float() if x.dtype in FLOATS else (x.float() * prologue.input_scale).to(dtype).float()
    if prologue.scale is not None and prologue.shift is not None:
        value = value * prologue.scale[:, None, None, :] + prologue.shift[:, None, None, :]
    return narrowed(activation_ref(value, prologue.activation, prologue.slope, None), dtype).float()


def epilogue_ref(
    value: Tensor,
    epilogue: Epilogue,
    dtype: torch.dtype,
    out: Tensor | None = None,
    *,
    computed: torch.dtype = torch.float32,
) -> Tensor:
    """Apply an epilogue to a float32 NHWC value in plain torch; write it into `out` where that is given.

    Args:
        dtype: type of the result. computed: the weight's, which `epilogue.levels` rounds to.
    """
    if epilogue.bias is not None:
        value = value + epilogue.bias.float()
    if not epilogue.activation_last:
        value = activation_ref(value, epilogue.activation, epilogue.slope, epilogue.slopes)
    r = epilogue.shuffle
    if r > 1:
        value = F.pixel_shuffle(value.permute(0, 3, 1, 2), r).permute(0, 2, 3, 1)
    for residual in epilogue.residuals:
        u, (_, h, w, _) = residual.upsample, value.shape
        other = residual.tensor.float().repeat_interleave(u, 1).repeat_interleave(u, 2)[:, :h, :w]
        value = value * residual.value_scale + other * residual.scale
    if epilogue.activation_last:
        value = activation_ref(value, epilogue.activation, epilogue.slope, epilogue.slopes)
    if epilogue.low is not None or epilogue.high is not None:
        value = value.clamp(epilogue.low, epilogue.high)
    value = value * epilogue.output_scale + epilogue.output_shift
    if epilogue.levels:
        value = narrowed(value, computed).float()
        if epilogue.flag is not None and not bool(value.isfinite().all()):
            epilogue.flag.fill_(1)
        value = value.where(~value.isnan(), 0.0) * torch.iinfo(dtype).max
    if dtype in IMAGES:
        value = value.clamp(0, torch.iinfo(dtype).max).round()
    result = narrowed(value, dtype)
    if out is None:
        return result.contiguous()
    place = out[..., epilogue.channel_offset : epilogue.channel_offset + result.shape[3]]
    place.copy_(result)
    return place


def activation_ref(value: Tensor, kind: Kind, slope: float, slopes: Tensor | None) -> Tensor:
    """Apply one activation in plain torch; channels are the last axis."""
    if kind == "none":
        return value
    if kind == "prelu":
        weight = torch.ones(1) if slopes is None else slopes.float()
        return torch.where(value < 0, weight * value, value)
    return Activation(kind, slope).apply(value)
